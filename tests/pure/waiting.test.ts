// How the end of a GPU's work is waited for: on a clock that the test moves.

import { expect, test } from "bun:test";
import { result } from "../../ffi/cuda.ts";
import { waiting } from "../../src/device/cuda/streams.ts";

/** How late the ends of waits of these lengths are noticed, and how many questions each took. */
async function lateness(lengths: readonly number[]) {
  let time = 0;
  const pass = async (ms: number) => {
    time += ms;
  };
  const wait = waiting({ now: () => time, sleep: () => pass(1.7), yield: () => pass(0.02) });
  const found: { readonly late: number; readonly questions: number }[] = [];
  for (const length of lengths) {
    const [begin, end] = [time, time + length];
    let questions = 0;
    const status = await wait(() => {
      questions++;
      return time < end ? result.NOT_READY : result.SUCCESS;
    });
    expect(status).toBe(result.SUCCESS);
    found.push({ late: time - begin - length, questions });
  }
  return found;
}

test("passes of two kinds are noticed at once after the first of each, and sleep most of the time", async () => {
  const found = await lateness([43.3, 54.1, 43.6, 53.4, 42.1, 55.2]);
  expect(found[0]!.late).toBeGreaterThan(0.5);
  for (const { late, questions } of found.slice(2)) {
    expect(late).toBeLessThan(0.03);
    expect(questions).toBeLessThan(54 / 0.02 / 2);
  }
});

test("a short wait is noticed at once, and one of another length within a sleep", async () => {
  const found = await lateness([43, 2, 90]);
  expect(found[1]!.late).toBeLessThan(0.03);
  expect(found[2]!.late).toBeLessThan(1.8);
  expect(found[2]!.questions).toBeLessThan(1000);
});

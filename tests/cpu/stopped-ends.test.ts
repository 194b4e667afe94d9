// A run that is stopped just when an adapter has made its last step: the adapter is evaluated, and its best state saved, by the
// run that continues, as if nothing had been.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadRecipe } from "../../src/recipe/load.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import { openSession } from "../../src/session/session.ts";
import { until } from "../helpers/bus.ts";
import { leftOf, SUMS, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

const one = (name: string, more: string) =>
  `[[adapter]]\nname = "${name}"\ndata = { train = "rows.jsonl", split = 0.3 }\nbatch_size = 3\nrank = 4\nseed = 5\nlearning_rate = 0.05\neval_every = 2\n${more}\n`;
// The program's number is best after step 4. While there is a file `held` it does not say that of the last step.
const held = join(place.root, "held");
const asked = join(place.root, "asked");
writeFileSync(
  join(place.root, "score.mjs"),
  `import { existsSync, writeFileSync } from "node:fs";
const { step } = JSON.parse(await Bun.stdin.text());
if (step === 8 && existsSync(${JSON.stringify(held)})) {
  writeFileSync(${JSON.stringify(asked)}, "");
  await new Promise(() => setInterval(() => {}, 1000));
}
console.log(JSON.stringify({ f1: 10 - (step - 4) ** 2 }));`,
);
const recipe = () => {
  const command = JSON.stringify([process.execPath, join(place.root, "score.mjs")]);
  const text =
    '[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\n' +
    one("best", "patience = 50\nsteps = 12") +
    one("hasty", "patience = 2\nsteps = 60") +
    one("plain", "steps = 7") +
    one("scored", `metrics = { command = ${command}, best = "f1" }\nsteps = 8`);
  return place.project(text, SUMS);
};
const NAMES = ["best", "hasty", "plain", "scored"];
const record = (path: string) => JSON.parse(readFileSync(join(outputOf(path), "run.json"), "utf8")).adapters;
const endOf = (path: string, name: string) => {
  const { seconds: _, folder: __, ...end } = record(path)[name];
  return end;
};

const whole = recipe();
const undisturbed = place.mlora("run", whole);

/** Trains until an event is as wanted, stops there, and continues by the same command. */
async function stoppedAt(
  name: string,
  isThen: (event: SessionEvent) => boolean,
  besides: (stop: AbortController) => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  expect((await undisturbed).code).toBe(0);
  const path = recipe();
  const stop = new AbortController();
  await using session = await openSession(loadRecipe(path), {
    isReachable: false,
    signal: stop.signal,
    onEvent: (event) => {
      if (isThen(event)) stop.abort();
    },
  });
  await besides(stop);
  const result = await session.done;
  expect(result.stopped).toBe(true);
  expect(record(path)[name]).toMatchObject({ status: "stopped", after: null });
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  for (const of of NAMES) {
    expect(endOf(path, of), of).toEqual(endOf(whole, of));
    expect(leftOf(outputOf(path), of), of).toEqual(leftOf(outputOf(whole), of));
  }
}

const isStep = (event: SessionEvent, name: string, step: number) =>
  event.type === "step" && event.adapter === name && event.step === step;

test("after its last step, the best state is another", () => stoppedAt("best", (event) => isStep(event, "best", 12)));

test("after its last step, every state counts", () => stoppedAt("plain", (event) => isStep(event, "plain", 7)));

test("when its patience ends", async () => {
  expect((await undisturbed).code).toBe(0);
  const { steps, status } = record(whole)["hasty"];
  expect(status).toBe("early");
  await stoppedAt("hasty", (event) => event.type === "evaluation" && event.adapter === "hasty" && event.step === steps);
});

test("while a program of the recipe's own judges its last state", async () => {
  writeFileSync(held, "");
  const meanwhile = async (stop: AbortController) => {
    await until("the program to be asked", 60_000, () => existsSync(asked));
    stop.abort();
    rmSync(held);
  };
  await stoppedAt("scored", () => false, meanwhile);
});

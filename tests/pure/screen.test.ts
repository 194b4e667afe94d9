// What a person sees of a run: bars that fit the screen, and a table that shows nothing where there is nothing.

import { expect, spyOn, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { duration } from "../../src/base/units.ts";
import { openProgress } from "../../src/cli/progress.ts";
import { summary } from "../../src/cli/results.ts";
import type { Plan } from "../../src/plan/plan.ts";
import type { AdapterResult } from "../../src/session/events/events.ts";

const planOf = (count: number): Plan =>
  ({
    adapters: range(count).map((index) => ({
      name: `a${index}`,
      ...{ index, steps: 10, tokens: 100, recipe: { objective: { name: "sft" }, train: [`${index}`], eval: [] } },
    })),
  }) as unknown as Plan;

test("no more bars are drawn than a screen has lines", () => {
  for (const [rows, most] of [
    [10, 9],
    [24, 23],
    [60, 25],
    [0, 23], // a terminal that does not say
  ] as const) {
    let drawn = "";
    const write = (text: string) => {
      drawn += text;
      return true;
    };
    const stream = { isTTY: true, rows, columns: 80, write, on: () => undefined } as unknown as NodeJS.WriteStream;
    using progress = openProgress(planOf(30), stream);
    drawn = "";
    const step = { type: "step", adapter: "a0", index: 0, step: 1, steps: 10, tokens: 10, tokensPerSecond: 5, loss: 1 };
    progress.report(step as never);
    progress[Symbol.dispose]();
    expect(new Set(drawn.match(/(all adapters|a\d+) /g)).size, `${rows} rows`).toBe(most);
  }
});

test("the time left is counted from an adapter's first step on, and not shown before it is known", () => {
  let at = 0;
  using clock = spyOn(performance, "now").mockImplementation(() => at);
  let printed = "";
  const write = (text: string) => {
    printed += text;
    return true;
  };
  using progress = openProgress(planOf(2), { isTTY: false, write } as unknown as NodeJS.WriteStream);
  const lineAt = (ms: number, index: number, step: number): string => {
    [at, printed] = [ms, ""];
    const rest = { steps: 10, tokens: 10, tokensPerSecond: 5, loss: 1 };
    progress.report({ type: "step", adapter: `a${index}`, index, step, ...rest } as never);
    return printed;
  };
  expect(lineAt(600_000, 0, 1)).toBe("a0: step 1/10, loss 1.0000, 5 tokens/s\n"); // opening took ten minutes
  expect(lineAt(600_001, 1, 1)).toBe("a1: step 1/10, loss 1.0000, 5 tokens/s\n");
  expect(lineAt(620_000, 0, 2)).toBe(`a0: step 2/10, loss 1.0000, 5 tokens/s, ${duration(8 * 20)} left\n`);
  expect(lineAt(640_001, 1, 6)).toBe(`a1: step 6/10, loss 1.0000, 5 tokens/s, ${duration(4 * 40)} left\n`);
  expect(clock).toHaveBeenCalled();
});

test("the table shows of an adapter that was not evaluated that there is nothing", () => {
  const result = { status: "done", message: null, steps: 3, tokens: 40, seconds: 1, firstLoss: 2, lastLoss: 1, folder: "/o/a" };
  const evaluation = { loss: 1, exact: 1, rows: 2 };
  const adapters = [
    { ...result, name: "a0", before: evaluation, after: { ...evaluation, loss: 0.5 } },
    { ...result, name: "a1", before: null, after: null },
    { ...result, name: "a2", before: evaluation, after: null },
  ] as unknown as AdapterResult[];
  const table = summary({ adapters, seconds: 1, tokens: 120, stopped: false, suspended: false }, planOf(3), "/o").join("\n");
  expect(table).toMatch(/^a0 +done +3 +1\.0000 -> 0\.5000 +50 % -> 50 % /m);
  expect(table).toMatch(/^a1 +done +3 +- +- +40 /m);
  expect(table).toMatch(/^a2 +done +3 +1\.0000 -> - +50 % -> - /m);
});

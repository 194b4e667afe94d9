// A run that is controlled while it trains, as its user does, with `mlora pause`, `add`, `fork` and others.

import { expect } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { askOnce } from "./ask.ts";
import { until } from "./bus.ts";
import { leftOf, metrics, type Running, SUMS, type Workplace } from "./program.ts";

export type Status = {
  readonly run: string;
  readonly state: string;
  readonly adapters: { name: string; state: string; step: number }[];
};

/** What the tests do to the runs of a place, and see of them. */
export function controls(place: Workplace) {
  const HERE = { MLORA_CACHE: join(place.root, "cache") }; // runs of other tests are not in the way

  const outputOf = (path: string) => join(path, "..", "out");
  const mlora = (...args: string[]) => place.start(args, HERE).ended;
  const start = (path: string, ...flags: string[]): Running => place.start(["run", path, ...flags], HERE);

  /** The answer to a request that must be granted. */
  async function told(...args: string[]): Promise<string> {
    const { code, out, err } = await mlora(...args);
    expect([code, err]).toEqual([0, ""]);
    return out.trim();
  }

  async function refusal(...args: string[]): Promise<string> {
    const { code, out, err } = await mlora(...args);
    expect([code, out]).toEqual([2, ""]);
    return err;
  }

  const steps = (path: string, adapter?: string) =>
    existsSync(join(outputOf(path), "metrics.jsonl"))
      ? metrics(outputOf(path), "step").filter((line) => adapter === undefined || line["adapter"] === adapter)
      : [];
  const begun = (path: string, count = 1, adapter?: string) =>
    until(`${count} steps`, 60_000, () => steps(path, adapter).length >= count);

  const list = async (): Promise<Status[]> => JSON.parse(await told("ps", "--json"));
  /** Of the only run under way; asked from here, not by the command, which takes longer than many steps. */
  const statesOf = async () => (await askOnce(place, { type: "status" }).catch(() => null))?.adapters ?? []; // it opens stages
  const stateOf = async (adapter: string) => (await statesOf()).find(({ name }) => name === adapter)?.state;
  const becomes = (adapter: string, state: string) =>
    until(`${adapter} is ${state}`, 120_000, async () => (await stateOf(adapter)) === state);

  /** On one stage, which comes to the same as several do, in a quarter of their time. */
  async function undisturbed(text: string): Promise<string> {
    const path = place.project(text, SUMS);
    expect((await mlora("run", path, "--stages", "1")).code).toBe(0);
    return path;
  }

  const same = (a: string, b: string, adapters: readonly number[]) => {
    for (const i of adapters) expect(leftOf(outputOf(a), `a${i}`), `a${i}`).toEqual(leftOf(outputOf(b), `a${i}`));
  };

  return { HERE, outputOf, mlora, start, told, refusal, steps, begun, list, statesOf, stateOf, becomes, undisturbed, same };
}

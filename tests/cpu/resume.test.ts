// Runs that are killed, interrupted or starved, and continue as if nothing had been: the same losses and weights as undisturbed
// ones.

import { afterAll, expect, test } from "bun:test";
import { appendFileSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { until } from "../helpers/bus.ts";
import { leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const KEPT = "checkpoint = { steps = 3 }";
const outputOf = (path: string) => join(path, "..", "out");
const names = (adapters: readonly number[]) => adapters.map((i) => `a${i}`);

async function expectSame(disturbed: string, undisturbed: string, adapters: readonly number[]): Promise<void> {
  for (const name of names(adapters)) expect(leftOf(outputOf(disturbed), name)).toEqual(leftOf(outputOf(undisturbed), name));
  const files = readdirSync(outputOf(disturbed), { recursive: true }).map(String);
  expect(files.filter((name) => /\.(tmp|part)($|\/)/.test(name))).toEqual([]);
  expect(existsSync(join(outputOf(disturbed), ".mlora.lock"))).toBe(false);
}

/** Starts a run and kills it some milliseconds after its adapters have made that many steps. */
async function killedAt(
  path: string,
  steps: number,
  later = 0,
  signal: NodeJS.Signals = "SIGKILL",
  kept: readonly string[] = [],
) {
  const run = place.start(["run", path]);
  const file = join(outputOf(path), "metrics.jsonl");
  const isThere = () => existsSync(file) && metrics(outputOf(path), "step").length >= steps;
  await until("steps", 20_000, () => isThere() && kept.every((name) => checkpoints(path, name).length > 0));
  await Bun.sleep(later);
  run.kill(signal);
  return run.ended;
}

/** Folders of an adapter's checkpoints that are whole, the oldest first. */
const checkpoints = (path: string, name: string): string[] =>
  checkpointsIn(join(outputOf(path), "checkpoints", name)).reverse();

test("killed at random moments, also while checkpoints are written, a run comes to what an undisturbed one does", async () => {
  const adapters = [0, 1, 3, 4];
  const text = longer(unlike(adapters, "cpu", KEPT), 60);
  const [undisturbed, disturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  expect((await place.mlora("run", undisturbed)).code).toBe(0);
  const rng = new Rng(77);
  const total = metrics(outputOf(undisturbed), "step").length;
  for (let at = 40; at < 0.9 * total; at += 30 + rng.below(200)) {
    const { code } = await killedAt(disturbed, at, rng.below(100));
    expect(code).toBe(137);
  }
  expect((await place.mlora("run", disturbed)).code).toBe(0);
  await expectSame(disturbed, undisturbed, adapters);
}, 120_000);

test("Ctrl-C keeps every adapter where it stands; the same command continues from there, and then there is nothing left to do", async () => {
  const adapters = [0, 1, 2];
  const text = longer(unlike(adapters, "cpu"), 60);
  const [undisturbed, disturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  await place.mlora("run", undisturbed);
  const { code, err } = await killedAt(disturbed, 20, 0, "SIGINT");
  expect([code, err]).toEqual([1, expect.stringContaining("hint: the same command continues it")]);
  const again = await place.mlora("run", disturbed, "--resume");
  expect([again.code, again.err]).toEqual([0, expect.stringMatching(/^going on with the run in .*: a0 at step \d+ of 360/m)]);
  expect(again.err).not.toContain("at step 0 of");
  await expectSame(disturbed, undisturbed, adapters);
  const finished = await place.mlora("run", disturbed);
  expect([finished.code, finished.err]).toEqual([
    2,
    expect.stringContaining("is finished: all adapters of the recipe have ended"),
  ]);
  // also of an adapter that has ended: the recipe that is kept would not be true
  writeFileSync(disturbed, text.replace("rank = 3\n", "rank = 4\n"));
  const changed = await place.mlora("run", disturbed);
  expect([changed.code, changed.err]).toEqual([2, expect.stringContaining("adapter 'a0': rank was 3, is 4")]);
  const nothing = await place.mlora("run", place.project(text, SUMS), "--resume");
  expect([nothing.code, nothing.err]).toEqual([2, expect.stringContaining("holds no run to continue")]);
});

test("a damaged checkpoint is reported and the one before it is taken; with none left the adapter begins again", async () => {
  const adapters = [0, 3];
  const text = longer(unlike(adapters, "cpu", KEPT), 100);
  const [undisturbed, disturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  await place.mlora("run", undisturbed);
  const run = place.start(["run", disturbed]);
  await until("two checkpoints", 20_000, () => ["a0", "a3"].every((name) => checkpoints(disturbed, name).length >= 2));
  run.kill("SIGKILL");
  await run.ended;
  const [older, newer] = checkpoints(disturbed, "a0").slice(-2);
  const state = readFileSync(join(newer!, "state.safetensors"));
  state[state.length >> 1]! ^= 4;
  writeFileSync(join(newer!, "state.safetensors"), state);
  for (const folder of checkpoints(disturbed, "a3")) truncateSync(join(folder, "checkpoint.json"), 30);
  const { code, err } = await place.mlora("run", disturbed);
  expect(code).toBe(0);
  expect(err).toMatch(
    /^notice: the checkpoint .*a0.* is damaged: state.safetensors has the SHA-256 .*; it is set aside as .*\.damaged, and the one before is taken$/m,
  );
  expect(err).toContain(`a0 at step ${Number(/step-(\d+)$/.exec(older!)![1])} of`);
  expect(err).toContain("a3 at step 0 of");
  await expectSame(disturbed, undisturbed, adapters);
});

test("a recipe, data or base model that would make other adapters is refused with the difference; more adapters may come", async () => {
  const adapters = [0, 1];
  const text = longer(unlike(adapters, "cpu", KEPT), 200);
  const path = place.project(text, SUMS);
  await killedAt(path, 40, 0, "SIGKILL", ["a0", "a1"]); // what was not kept has nothing to differ from
  const before = readFileSync(join(outputOf(path), "metrics.jsonl"), "utf8");
  const change = async (to: string, rows = SUMS["rows.jsonl"]) => {
    writeFileSync(path, to);
    writeFileSync(join(path, "..", "rows.jsonl"), rows);
    const { code, err } = await place.mlora("run", path);
    return [code, err.slice(err.indexOf("error["))];
  };
  expect(await change(text.replace("rank = 3", "rank = 4"))).toEqual([
    2,
    expect.stringContaining("adapter 'a0': rank was 3, is 4"),
  ]);
  expect(await change(text.replace("tokens_per_microbatch = 60", "tokens_per_microbatch = 61"))).toEqual([
    2,
    expect.stringContaining("adapter 'a1': tokens_per_microbatch was 60, is 61"),
  ]);
  expect(await change(text, SUMS["rows.jsonl"].replace("What", "Whet"))).toEqual([
    2,
    expect.stringContaining("adapter 'a0': its data has other rows"),
  ]);
  expect(readFileSync(join(outputOf(path), "metrics.jsonl"), "utf8")).toBe(before); // nothing is lost
  appendFileSync(join(outputOf(path), "metrics.jsonl"), '{"type":"step","adap'); // as a kill may leave it
  const more = longer(unlike([0, 1, 4], "cpu", KEPT), 200).replaceAll("eval_every = 2", "eval_every = 2\npriority = 3");
  const [code, err] = await change(more);
  expect([code, err]).toEqual([0, expect.anything()]);
  const undisturbed = place.project(more, SUMS);
  await place.mlora("run", undisturbed);
  await expectSame(path, undisturbed, [0, 1, 4]);
});

test("with fewer slots than adapters all are trained, by priority, and come to the same as together", async () => {
  const adapters = [0, 1, 2, 3, 4, 5];
  const text = unlike(adapters, "cpu");
  const together = place.project(text, SUMS);
  await place.mlora("run", together);
  for (const slots of [1, 2, 4]) {
    const urgent = text.replace('name = "a4"', 'name = "a4"\npriority = 5').replace("[run]", `[run]\nslots = ${slots}`);
    const path = place.project(urgent, SUMS);
    const { code, err } = await place.mlora("run", path);
    expect([code, err]).toEqual([0, expect.stringContaining(`${slots} of them train at once`)]);
    await expectSame(path, together, adapters);
    const order = [...new Set(metrics(outputOf(path), "step").map(({ adapter }) => adapter))];
    if (slots === 1) expect(order).toEqual(["a4", "a0", "a1", "a2", "a3", "a5"]);
  }
});

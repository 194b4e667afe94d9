// Runs that are killed, interrupted or starved, and continue as if nothing had been: the same losses and weights as undisturbed
// ones.

import { afterAll, expect, test } from "bun:test";
import { appendFileSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { beforeItsEnd, signalled } from "../helpers/middle.ts";
import { areKept, leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

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

const hasMade = (path: string, steps: number): boolean =>
  existsSync(join(outputOf(path), "metrics.jsonl")) && metrics(outputOf(path), "step").length >= steps;

/** Starts runs of `text` until one gets the signal in its middle: `text` is of that one, longer where the first had ended. */
const interrupted = (signal: NodeJS.Signals, text: string, isThere: (path: string) => boolean) =>
  signalled(
    signal,
    (factor) => {
      const path = place.project(longer(text, factor), SUMS);
      return { path, text: longer(text, factor), running: place.start(["run", path]) };
    },
    ({ path }) => isThere(path),
  );

/** Folders of an adapter's checkpoints that are whole, the oldest first. */
const checkpoints = (path: string, name: string): string[] =>
  checkpointsIn(join(outputOf(path), "checkpoints", name)).reverse();

test("killed at random moments, also while checkpoints are written, a run comes to what an undisturbed one does", async () => {
  const adapters = [0, 1, 3, 4];
  const text = longer(unlike(adapters, "cpu", KEPT), 40);
  const [undisturbed, disturbed] = [place.project(text, SUMS), place.project(text, SUMS)];
  expect((await place.mlora("run", undisturbed)).code).toBe(0);
  const rng = new Rng(77);
  const total = metrics(outputOf(undisturbed), "step").length;
  let [kills, last] = [0, ""];
  for (let at = 40; last === ""; at += 30 + rng.below(200)) {
    const run = place.start(["run", disturbed]);
    if (at < 0.9 * total && (await beforeItsEnd(run, "steps", () => hasMade(disturbed, at)))) {
      await Bun.sleep(rng.below(100));
      run.kill("SIGKILL");
    }
    const { code, err } = await run.ended;
    if (code === 137) kills++;
    else last = code === 0 || err.includes("error[resume.finished]") ? "ended" : err;
  }
  expect(last).toBe("ended");
  expect(kills).toBeGreaterThan(0); // how many depends on the machine
  await expectSame(disturbed, undisturbed, adapters);
});

test("Ctrl-C keeps every adapter where it stands; the same command continues from there, and then there is nothing left to do", async () => {
  const adapters = [0, 1, 2];
  const {
    path: disturbed,
    text,
    ended,
  } = await interrupted("SIGINT", longer(unlike(adapters, "cpu"), 10), (path) => hasMade(path, 20));
  expect([ended.code, ended.err]).toEqual([1, expect.stringContaining("hint: the same command continues it")]);
  const undisturbed = place.project(text, SUMS);
  await place.mlora("run", undisturbed);
  const again = await place.mlora("run", disturbed, "--resume");
  expect([again.code, again.err]).toEqual([0, expect.stringMatching(/^going on with the run in .*: a0 at step \d+ of \d+/m)]);
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
  const { path: disturbed, text } = await interrupted("SIGKILL", longer(unlike(adapters, "cpu", KEPT), 20), (path) =>
    ["a0", "a3"].every((name) => checkpoints(path, name).length >= 2),
  );
  const undisturbed = place.project(text, SUMS);
  await place.mlora("run", undisturbed);
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
  // what was not kept has nothing to differ from
  const { path, text } = await interrupted("SIGKILL", longer(unlike(adapters, "cpu", KEPT), 20), (path) =>
    ["a0", "a1"].every((name) => checkpoints(path, name).length > 0),
  );
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
  const fifth = longer(unlike([4], "cpu", KEPT), 20);
  const more = `${text}${fifth.slice(fifth.indexOf("[[adapter]]"))}`.replaceAll(
    "eval_every = 2",
    "eval_every = 2\npriority = 3",
  );
  const [code, err] = await change(more);
  expect([code, err]).toEqual([0, expect.anything()]);
  const undisturbed = place.project(more, SUMS);
  await place.mlora("run", undisturbed);
  await expectSame(path, undisturbed, [0, 1, 4]);
});

test("an adapter that the recipe has no more is reported, and continues where it was when it comes back", async () => {
  const { path, text } = await interrupted("SIGKILL", longer(unlike([0, 1], "cpu", KEPT), 20), (path) =>
    areKept(outputOf(path), ["a0", "a1"]),
  );
  const [first, second] = [text.indexOf("[[adapter]]"), text.lastIndexOf("[[adapter]]")];
  writeFileSync(path, text.slice(0, first) + text.slice(second));
  const without = await place.mlora("run", path);
  expect([without.code, without.err]).toEqual([0, expect.stringContaining("notice: 'a0' is not in the recipe any more")]);
  writeFileSync(path, text);
  const again = await place.mlora("run", path);
  expect([again.code, again.err]).toEqual([0, expect.stringMatching(/: a0 at step [1-9]\d* of \d+, a1 is done$/m)]);
  const undisturbed = place.project(text, SUMS);
  await place.mlora("run", undisturbed);
  await expectSame(path, undisturbed, [0, 1]);
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

// Checkpoints on disk: the one of a step that has one already, those that are damaged, full disks; and metrics of any size,
// taken back.

import { afterAll, expect, test } from "bun:test";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkpointsIn, readCheckpoint, setAside, writeCheckpoint } from "../../src/files/checkpoint.ts";
import { rewindMetrics } from "../../src/files/record.ts";
import { layoutAdapter } from "../../src/methods/layout.ts";
import { smallDisk } from "../helpers/disk.ts";
import { needs } from "../helpers/needs.ts";
import { tinySpec } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-checkpoint-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const spec = tinySpec();
const part = { from: 0, to: spec.layers };
const layout = layoutAdapter(spec, part, { rank: 4, targets: ["o_proj"] });
const made = { settings: "{}", data: "d", model: "m" };
const at = (step: number, tokens = 1) => ({
  ...{ adapter: "a", step, tokens, seconds: 1, firstLoss: 1, lastLoss: 1, before: null, best: null, made },
});
const block = () => new Float32Array(layout.size).fill(0.5);
const snapshot = {
  ...{ spec, rank: 4, targets: ["o_proj"] as const },
  stages: [{ layerRange: part, layout, blocks: { params: block(), m: block(), v: block() } }],
};

/** The same of twice the rank. */
const wide = layoutAdapter(spec, part, { rank: 8, targets: ["o_proj"] });
const blocks = () => new Float32Array(wide.size).fill(0.5);
const large = { rank: 8, stages: [{ layerRange: part, layout: wide, blocks: { params: blocks(), m: blocks(), v: blocks() } }] };

test("the checkpoint of a step that has one takes a name of its own, and the old one goes after it", () => {
  const folder = join(root, "same");
  for (const tokens of [1, 2, 3]) {
    writeCheckpoint(folder, at(7, tokens), snapshot, 2);
    expect(readCheckpoint(checkpointsIn(folder)[0]!).progress.tokens).toBe(tokens);
  }
  expect(readdirSync(folder).sort()).toEqual(["step-000000007-2", "step-000000007-3"]);
});

test("a damaged one is neither the newest nor one of those that are kept", () => {
  const folder = join(root, "damaged");
  for (const step of [3, 9]) writeCheckpoint(folder, at(step), snapshot, 2);
  const [newest] = checkpointsIn(folder);
  writeFileSync(join(newest!, "state.safetensors"), "x");
  expect(() => readCheckpoint(newest!)).toThrow("is damaged");
  expect(setAside(newest!)).toBe(`${newest}.damaged`);
  for (const step of [4, 5]) writeCheckpoint(folder, at(step), snapshot, 2);
  expect(checkpointsIn(folder).map((path) => readCheckpoint(path).progress.step)).toEqual([5, 4]);
  expect(readdirSync(folder)).toContain("step-000000009.damaged");
});

/** What a disk in memory gives room by. */
const PAGE = 4096;

needs("disks")("on a full disk", () => {
  /** A disk with room for this many checkpoints and a half. */
  function disk(folder: string, checkpoints: number): Disposable {
    const apart = join(root, "size");
    writeCheckpoint(apart, at(1), snapshot, 1);
    const bytes = statSync(join(checkpointsIn(apart)[0]!, "state.safetensors")).size;
    const pages = Math.ceil(bytes / PAGE) + 1; // and one for checkpoint.json
    return smallDisk(folder, (Math.ceil((checkpoints + 0.5) * pages) * PAGE) / 1024);
  }
  const stepsIn = (folder: string) => checkpointsIn(folder).map((path) => readCheckpoint(path).progress.step);

  test("the older of two makes room for the next, which is reported; the newest stays until its successor is there", () => {
    const folder = join(root, "full");
    using _ = disk(folder, 2);
    const notices: string[] = [];
    for (const step of [3, 6, 9, 12]) writeCheckpoint(folder, at(step), snapshot, 3, (text) => notices.push(text));
    expect(stepsIn(folder)).toEqual([12, 9]);
    const told = (step: number) =>
      new RegExp(`^the disk is full: the checkpoint .*/step-00000000${step} makes room for step ${step + 6}$`);
    expect(notices).toEqual([3, 6].map((step) => expect.stringMatching(told(step))));
  });

  test("the only one stays, and so does the older of two where its room would not be enough", () => {
    for (const [checkpoints, before, next] of [
      [1, [3], snapshot],
      [2, [3, 6], { ...snapshot, ...large }],
    ] as const) {
      const folder = join(root, `small-${checkpoints}`);
      using _ = disk(folder, checkpoints);
      const notices: string[] = [];
      for (const step of before) writeCheckpoint(folder, at(step), snapshot, 3);
      expect(() => writeCheckpoint(folder, at(9), next, 3, (text) => notices.push(text))).toThrow(/cannot write .*ENOSPC/);
      expect(stepsIn(folder)).toEqual(before.toReversed());
      expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
      expect(notices).toEqual([]);
    }
  });
});

test("200 MB of metrics are taken back in memory that does not grow with them", () => {
  const folder = mkdtempSync(join(root, "metrics-"));
  const path = join(folder, "metrics.jsonl");
  const pad = "x".repeat(4000);
  const line = (adapter: string, step: number) => `${JSON.stringify({ type: "step", adapter, step, pad })}\n`;
  const fd = openSync(path, "w");
  for (let step = 1; step <= 25_000; step++) writeSync(fd, line("a", step) + line("b", step));
  writeSync(fd, '{"type":"st'); // as a kill leaves it
  closeSync(fd);
  Bun.gc(true);
  const before = process.memoryUsage.rss();
  rewindMetrics(folder, (name) => (name === "a" ? 10 : null));
  expect(process.memoryUsage.rss() - before).toBeLessThan(160 << 20);
  const kept = readFileSync(path, "utf8").trimEnd().split("\n");
  expect(kept.length).toBe(25_010);
  expect(JSON.parse(kept.at(-1)!)).toMatchObject({ adapter: "b", step: 25_000 });
});

test("a completion with a long prompt is kept where its step is, and goes where it is not", () => {
  const folder = mkdtempSync(join(root, "long-"));
  const line = (step: number) => `${JSON.stringify({ type: "completion", adapter: "a", step, prompt: "x".repeat(3 << 20) })}\n`;
  const path = join(folder, "completions.jsonl");
  writeFileSync(path, line(1) + line(2) + line(3));
  rewindMetrics(folder, () => 2);
  expect(readFileSync(path, "utf8") === line(1) + line(2)).toBe(true);
});

// TensorBoard's event files, to the bytes that its own package writes; scripts/nightly/tracking.ts has it read whole runs.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { crc32c, scalarsRecord, startRecord, versionRecord } from "../../src/files/tfevents.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import { scalarsOf } from "../../src/session/trackers/scalars.ts";

const golden = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "tracking", "events.json"), "utf8"));
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

describe("records are those of tensorboard's own writer", () => {
  test("checksums", () => {
    for (const of of golden.crc32c) expect(crc32c(Buffer.from(of.hex, "hex"))).toBe(of.crc);
  });
  test("the first record of a file, and that of a resumed run", () => {
    expect(hex(versionRecord({ wallTime: golden.version.wall_time }))).toBe(golden.version.hex);
    expect(hex(startRecord({ wallTime: golden.start.wall_time }, golden.start.step))).toBe(golden.start.hex);
  });
  test("numbers of steps", () => {
    for (const { wall_time: wallTime, step, scalars, hex: expected } of golden.scalars)
      expect(hex(scalarsRecord({ wallTime }, step, scalars))).toBe(expected);
  });
});

describe("names are those of TRL", () => {
  const step = {
    type: "step",
    adapter: "a",
    index: 0,
    step: 3,
    steps: 9,
    epoch: 1,
    loss: 2,
    learningRate: 1e-4,
    gradNorm: 0.5,
  } as const;
  const at = { tokens: 10, tokensPerSecond: 5 };
  test("of a step", () => {
    const event: SessionEvent = { ...step, ...at, preference: null };
    expect(scalarsOf(event, () => 6)).toEqual({
      adapter: "a",
      step: 3,
      scalars: {
        "train/loss": 2,
        "train/grad_norm": 0.5,
        "train/learning_rate": 1e-4,
        "train/epoch": 0.5,
        "train/tokens_per_second": 5,
      },
    });
  });
  test("of preferences; a number that is NaN is left out", () => {
    const event: SessionEvent = { ...step, ...at, preference: { accuracy: 0.75, margin: null, contrast: null } };
    const { scalars } = scalarsOf(event, () => 6)!;
    expect([scalars["train/rewards/accuracies"], "train/rewards/margins" in scalars]).toEqual([0.75, false]);
  });
  test("of an evaluation", () => {
    const event: SessionEvent = {
      type: "evaluation",
      adapter: "a",
      index: 0,
      step: 4,
      loss: 1,
      exact: 1,
      rows: 4,
      isPreference: false,
    };
    expect(scalarsOf(event, () => 6)).toEqual({ adapter: "a", step: 4, scalars: { "eval/loss": 1, "eval/exact_match": 0.25 } });
  });
});

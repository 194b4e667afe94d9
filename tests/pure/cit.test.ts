// The loss of contrastive instruction tuning and its gradients by pooled states, as torch's autograd has them in float64.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { sum } from "../../src/base/shape.ts";
import { cosineGradients, cosines } from "../../src/objectives/cosine.ts";
import type { ScoredRow } from "../../src/objectives/definition.ts";
import { isCorrect, type Preference, preferenceLoss } from "../../src/objectives/registry.ts";

type Case = {
  readonly objective: Extract<Preference, { name: "cit" }>;
  readonly whole: readonly [rows: number, tokens: number];
  readonly us: number[][];
  readonly vs: number[][];
  readonly logps: [number, number][];
  readonly targets: [number, number][];
  readonly contrast: number;
  readonly loss: number;
  readonly gradients: { readonly us: number[][]; readonly vs: number[][]; readonly logps: number[][] };
};
const CASES: Case[] = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "cit", "losses.json"), "utf8"));
const floats = (rows: readonly (readonly number[])[]) => rows.map((row) => Float32Array.from(row));

const rowsOf = (logps: Case["logps"], targets: Case["targets"], similar: readonly number[][]): ScoredRow[] =>
  logps.map((logp, i) => ({
    own: { logp: logp[0], targets: targets[i]![0] },
    other: { logp: logp[1], targets: targets[i]![1] },
    reference: null,
    label: true,
    similar: similar[i]!,
  }));

describe.each(CASES.map((golden) => [JSON.stringify(golden.objective), golden] as const))("%s", (_, golden) => {
  test("loss, contrast and gradients are torch's", () => {
    // Vectors are f32 here, doubles there; a cosine's error is divided by the temperature.
    const near = (got: number, want: number) =>
      expect(Math.abs(got - want)).toBeLessThan((1e-6 * Math.max(1, Math.abs(want))) / golden.objective.temperature);
    const [us, vs] = [floats(golden.us), floats(golden.vs)];
    const [rows, tokens] = golden.whole;
    const found = preferenceLoss(golden.objective, rowsOf(golden.logps, golden.targets, cosines(us, vs)), { rows, tokens });
    near(sum(found.map(({ loss }) => loss)), golden.loss);
    near((sum(found.map(({ contrast }) => contrast!.loss)) * rows) / us.length, golden.contrast);
    const by = cosineGradients(
      us,
      vs,
      found.map(({ contrast }) => contrast!.gradients),
    );
    for (const which of ["us", "vs"] as const)
      for (const [i, want] of golden.gradients[which].entries())
        for (const [k, value] of want.entries()) near(by[which][i]![k]!, value);
    for (const [i, want] of golden.gradients.logps.entries())
      for (const k of [0, 1] as const) near(found[i]!.gradients[k], want[k]!);
  });
});

test("slopes by cosines are the derivatives of the loss while lambda is the weight", () => {
  const rng = new Rng(21);
  const objective = { name: "cit", lambda: 0.01, temperature: 0.2, pooling: "last" } as const;
  const square = Array.from({ length: 4 }, () => Array.from({ length: 4 }, () => 2 * rng.uniform() - 1));
  const logps = square.map((): [number, number] => [-9 - rng.uniform(), -11 - rng.uniform()]);
  const targets = square.map((): [number, number] => [3, 4]);
  const whole = { rows: 9, tokens: 70 };
  const at = (similar: readonly number[][]) => preferenceLoss(objective, rowsOf(logps, targets, similar), whole);
  const found = at(square);
  for (const [i, row] of square.entries())
    for (const j of row.keys()) {
      const moved = (by: number) =>
        sum(at(square.map((of, k) => (k === i ? of.with(j, of[j]! + by) : of))).map(({ loss }) => loss));
      const gradient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
      expect(Math.abs(found[i]!.contrast!.gradients[j]! - gradient)).toBeLessThan(1e-8);
    }
});

test("a row is right when its own paraphrase is the most similar; alone it has no contrast and no gradient", () => {
  const objective = { name: "cit", lambda: 1, temperature: 0.05, pooling: "last" } as const;
  const two: [number, number][] = [
    [-5, -6],
    [-7, -4],
  ];
  const rows = rowsOf(
    two,
    [
      [2, 2],
      [3, 3],
    ],
    [
      [0.9, 0.2],
      [0.5, 0.4],
    ],
  );
  const found = preferenceLoss(objective, rows, { rows: 2, tokens: 10 });
  expect(rows.map((row, i) => isCorrect(row, found[i]!))).toEqual([true, false]);
  expect(found.map(({ rewards }) => rewards)).toEqual([
    [0.9, 0.2],
    [0.4, 0.5],
  ]);
  const [alone] = preferenceLoss(objective, rowsOf([[-5, -6]], [[2, 2]], [[0.7]]), { rows: 1, tokens: 4 });
  expect(alone).toEqual({
    loss: 11 / 4,
    gradients: [-0.25, -0.25],
    rewards: [0.7, 0.7],
    contrast: { loss: 0, gradients: [0] },
  });
});

// Preferences: slopes against finite differences, values against the formulas written another way, and what each objective
// promises.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import type { ScoredRow } from "../../src/objectives/definition.ts";
import { isCorrect, type Preference, preferenceLoss } from "../../src/objectives/registry.ts";

const OBJECTIVES: Preference[] = [
  { name: "dpo", loss: "sigmoid", beta: 0.1, labelSmoothing: 0, reference: "base" },
  { name: "dpo", loss: "sigmoid", beta: 0.7, labelSmoothing: 0.2, reference: "base" },
  { name: "dpo", loss: "hinge", beta: 0.3, labelSmoothing: 0, reference: "base" },
  { name: "dpo", loss: "ipo", beta: 0.1, labelSmoothing: 0, reference: "base" },
  { name: "cpo", loss: "sigmoid", beta: 0.1, labelSmoothing: 0.1, alpha: 1 },
  { name: "cpo", loss: "hinge", beta: 0.1, labelSmoothing: 0, alpha: 0.3 },
  { name: "simpo", beta: 2, gamma: 1, labelSmoothing: 0 },
  { name: "orpo", lambda: 0.25 },
  { name: "apo_zero", beta: 0.6, reference: "base" },
  { name: "kto", beta: 0.2, desirable: 1, undesirable: 1.4, reference: "base" },
];

function randomRows(rng: Rng, count: number): ScoredRow[] {
  const scored = () => ({ logp: -40 * rng.uniform() - 0.5, targets: 1 + rng.below(30) });
  return Array.from({ length: count }, () => {
    const [own, other] = [scored(), scored()];
    const near = ({ logp }: { logp: number }) => logp + 6 * (rng.uniform() - 0.5);
    return { own, other, reference: [near(own), near(other)] as const, label: rng.below(2) === 1, similar: null };
  });
}

const nameOf = (objective: Preference) => JSON.stringify(objective);

describe.each(OBJECTIVES.map((objective) => [nameOf(objective), objective] as const))("%s", (_, objective) => {
  const whole = { rows: 7, tokens: 120 };
  const total = (rows: readonly ScoredRow[]) => preferenceLoss(objective, rows, whole).reduce((sum, { loss }) => sum + loss, 0);

  test("its slopes are the derivatives of its loss", () => {
    const rng = new Rng(11);
    for (let round = 0; round < 40; round++) {
      const rows = randomRows(rng, 3);
      const found = preferenceLoss(objective, rows, whole);
      for (const [i, row] of rows.entries())
        for (const [k, which] of (["own", "other"] as const).entries()) {
          // KTO's reference point has no gradient by definition.
          if (objective.name === "kto" && which === "other") {
            expect(found[i]!.gradients[1]).toBe(0);
            continue;
          }
          const at = (by: number) =>
            rows.map((r) => (r === row ? { ...r, [which]: { ...r[which], logp: r[which].logp + by } } : r));
          const h = 1e-5;
          const gradient = (total(at(h)) - total(at(-h))) / (2 * h);
          expect(Math.abs(found[i]!.gradients[k]! - gradient)).toBeLessThan(1e-6 + 1e-5 * Math.abs(gradient));
        }
    }
  });

  test("a likelier preferred answer never makes it worse, and nothing overflows", () => {
    const rng = new Rng(12);
    for (const row of randomRows(rng, 50)) {
      const better = { ...row, own: { ...row.own, logp: Math.min(-1e-6, row.own.logp + 3) } };
      const worse = objective.name === "kto" && !row.label;
      if (objective.name === "dpo" && objective.loss === "ipo") continue; // it needs a margin, not the largest
      if ("labelSmoothing" in objective && objective.labelSmoothing > 0) continue;
      if (worse) expect(total([better])).toBeGreaterThanOrEqual(total([row]) - 1e-12);
      else expect(total([better])).toBeLessThanOrEqual(total([row]) + 1e-12);
    }
    const extreme = (own: number, other: number): ScoredRow => ({
      own: { logp: own, targets: 3 },
      other: { logp: other, targets: 5 },
      reference: [-10, -10],
      label: true,
      similar: null,
    });
    for (const row of [extreme(-1e-12, -1e5), extreme(-1e5, -1e-12), extreme(0, 0)])
      for (const { loss, gradients } of preferenceLoss(objective, [row], whole))
        expect([loss, ...gradients].every(Number.isFinite)).toBe(true);
  });
});

/** losses.json as tests/golden/trl/make.py writes it. */
type Case = {
  readonly objective: Preference;
  readonly rows: Readonly<Record<"own" | "other" | "own_targets" | "other_targets" | "own_ref" | "other_ref", number[]>> & {
    readonly label: boolean[];
  };
  readonly loss: number;
  readonly slopes: readonly [number[], number[]];
  readonly rewards: readonly number[][];
};
const CASES: Case[] = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "trl", "losses.json"), "utf8"));

test.each(CASES.map((golden) => [nameOf(golden.objective), golden] as const))(
  "TRL has the same loss, slopes and rewards: %s",
  (_, golden) => {
    const { rows: r, objective } = golden;
    const rows = r.own.map(
      (logp, i): ScoredRow => ({
        own: { logp, targets: r.own_targets[i]! },
        other: { logp: r.other[i]!, targets: r.other_targets[i]! },
        reference: [r.own_ref[i]!, r.other_ref[i]!],
        label: r.label[i]!,
        similar: null,
      }),
    );
    const whole = { rows: rows.length, tokens: r.own_targets.reduce((a, b) => a + b) };
    const found = preferenceLoss(objective, rows, whole);
    const near = (got: number, want: number) => expect(Math.abs(got - want)).toBeLessThan(1e-9 * Math.max(1, Math.abs(want)));
    near(
      found.reduce((sum, { loss }) => sum + loss, 0),
      golden.loss,
    );
    for (const [i, { gradients, rewards }] of found.entries()) {
      for (const k of [0, 1] as const) near(gradients[k], golden.slopes[k][i]!);
      for (const [k, of] of golden.rewards.entries()) near(rewards[k]!, of[i]!);
    }
  },
);

test("a policy that is its reference has the loss of no preference, and no row is judged right", () => {
  const row: ScoredRow = {
    own: { logp: -9, targets: 4 },
    other: { logp: -7, targets: 3 },
    reference: [-9, -7],
    label: true,
    similar: null,
  };
  const [found] = preferenceLoss(OBJECTIVES[0]!, [row], { rows: 1, tokens: 4 });
  expect(found!.loss).toBeCloseTo(Math.log(2), 12);
  expect(isCorrect(row, found!)).toBe(false);
});

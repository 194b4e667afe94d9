// The backward pass against finite differences of the forward pass: every family, every linear, with dropout and without,
// adapters that are alike in all layers and such as are not.

import { describe, expect, test } from "bun:test";
import type { Rng } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Linear } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { placed, rankAt, scaleAt } from "../../src/methods/placement.ts";
import type { Preference } from "../../src/objectives/registry.ts";
import type { Segment } from "../../src/schedule/pack.ts";
import { common, expectGradients, expectSameRecomputed, preferenceLoss, weightedLoss } from "../helpers/gradients.ts";
import { inExperts, LINEARS, randomTokens, sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const adapters: readonly PoolAdapter[] = [
  { rank: 3, scale: 1.7, targets: LINEARS },
  { rank: 5, scale: 0.4, targets: ["q_proj", "v_proj", "gate_proj", "down_proj"] },
  { rank: 4, scale: 0.8, targets: ["k_proj", "v_proj", "o_proj", "up_proj", "down_proj"], method: "dora" },
  { rank: 6, scale: 1, targets: ["q_proj", "k_proj", "o_proj", "down_proj"], method: "vera", projectionSeed: 3 },
];

/** Of each layer, the ranks and scales of the linears that it has. */
type Layers = readonly Readonly<Partial<Record<Linear, readonly [rank: number, scale: number]>>>[];
const byPlace = (layers: Layers) =>
  placed(layers.length, (layer, linear) => {
    const [rank, scale] = layers[layer]![linear] ?? [0, 0];
    return rank === 0 ? null : { rank, scale };
  });

/** Another rank and scale in each linear of each layer; linears, groups of them and a whole layer left out. */
const uneven: readonly PoolAdapter[] = [
  byPlace([
    { q_proj: [3, 1.7], v_proj: [7, 0.3], o_proj: [1, 2], up_proj: [2, 0.9], down_proj: [5, 1.1] },
    { q_proj: [6, 0.6], k_proj: [2, 1.3], gate_proj: [4, 0.7], up_proj: [9, 0.4] },
  ]),
  { ...byPlace([{}, { k_proj: [3, 0.8], v_proj: [1, 1.9], gate_proj: [5, 0.5], down_proj: [2, 1.4] }]), method: "dora" },
  {
    ...byPlace([
      { q_proj: [4, 0.7], k_proj: [2, 1.2], down_proj: [3, 0.9] },
      { k_proj: [6, 0.5], o_proj: [1, 1.6], up_proj: [2, 1.1] },
    ]),
    method: "dora",
  },
  {
    ...byPlace([
      { q_proj: [6, 1], down_proj: [6, 1] },
      { v_proj: [6, 1], o_proj: [6, 1] },
    ]),
    method: "vera",
    projectionSeed: 3,
  },
  // As PiSSA and OLoRA are trained: the second half of each rank is frozen.
  {
    ...byPlace([
      { q_proj: [4, 0.8], k_proj: [10, 0.3], v_proj: [2, 1.5], gate_proj: [6, 0.6] },
      { o_proj: [8, 0.5], up_proj: [2, 1.2], down_proj: [4, 0.7] },
    ]),
    trainedRank: 5,
  },
];

/** A loss has no gradient where another expert would be chosen, so all are, nor where a clamp or limit begins, so it is far. */
function smooth({ mamba, ...rest }: ModelSpec): ModelSpec {
  const spec = { ...rest, mamba: mamba && { ...mamba, limits: { least: 0, most: null } } };
  if (spec.experts === null) return spec;
  const { perToken, clamp, router } = spec.experts;
  const all = { count: perToken, router: { ...router, groups: 1, keptGroups: 1 }, clamp: clamp && { ...clamp, limit: 50 } };
  return { ...spec, experts: { ...spec.experts, ...all } };
}
const FAMILIES = Object.entries({ ...tinyFamilies, ...sparseFamilies }).map(([name, spec]) => [name, smooth(spec)] as const);

const sharesOf = (spec: ModelSpec, of: readonly PoolAdapter[], dropout: number) => (rng: Rng) =>
  of.map((_, adapter) => ({
    ...common(adapter, dropout),
    samples: [11, 3, 18 + adapter].map((length) => randomTokens(rng, spec.vocab, length)),
  }));

/** With everything kept they are compared with differences, and whatever is computed again gives the same bits. */
function testGradients(name: string, spec: ModelSpec, of: readonly PoolAdapter[], dropout: number, hostInputs: number): void {
  const shares = sharesOf(spec, of, dropout);
  describe(`${name}, dropout ${dropout}`, () => {
    test("gradients agree with finite differences", () =>
      expectGradients(spec, { recomputation: "none" }, shares, weightedLoss, of));
    test("recomputation changes none of their bits", () => expectSameRecomputed(spec, { hostInputs }, shares, of));
  });
}

for (const [name, spec] of FAMILIES) for (const dropout of [0, 0.1]) testGradients(name, spec, adapters, dropout, 1);

describe("ranks and scales that differ by layer and linear", () => {
  test("hold what the other adapters do not: linears and layers left out, and no two places alike", () => {
    const [lora, ...others] = uneven;
    const sites = [0, 1].flatMap((layer) =>
      LINEARS.map((linear) => [rankAt(lora!, layer, linear), scaleAt(lora!, layer, linear)]),
    );
    const used = sites.filter(([rank]) => rank! > 0);
    expect([sites.length > used.length, new Set(used.map(String)).size]).toEqual([true, used.length]);
    for (const adapter of [lora!, ...others]) expect(adapter.places).toBeDefined();
  });

  for (const [name, spec] of FAMILIES) for (const dropout of [0, 0.1]) testGradients(name, spec, uneven, dropout, 2);
});

describe("adapters in experts", () => {
  for (const [name, spec] of FAMILIES.filter(([, of]) => of.experts !== null))
    testGradients(name, spec, inExperts(spec), 0.1, 1);
});

const PREFERENCES: readonly Preference[] = [
  { name: "dpo", loss: "sigmoid", beta: 0.3, labelSmoothing: 0.1, reference: "base" },
  { name: "dpo", loss: "ipo", beta: 0.3, labelSmoothing: 0, reference: "base" },
  { name: "cpo", loss: "sigmoid", beta: 0.2, labelSmoothing: 0, alpha: 0.7 },
  { name: "simpo", beta: 2, gamma: 0.5, labelSmoothing: 0 },
  { name: "orpo", lambda: 0.5 },
  { name: "apo_zero", beta: 0.3, reference: "base" },
];

describe("preferences", () => {
  for (const [i, objective] of PREFERENCES.entries())
    test(`gradients agree with finite differences: ${objective.name} with another`, () => {
      const spec = tinyFamilies[Object.keys(tinyFamilies)[i % Object.keys(tinyFamilies).length]!]!;
      const sharesOf = (rng: Rng): Segment[] =>
        adapters.map((_, adapter) => {
          const row = (own: number, other: number) => ({
            ...randomTokens(rng, spec.vocab, own),
            other: randomTokens(rng, spec.vocab, other),
          });
          const totals = { rows: 3, tokens: 20 };
          const references = [[-30, -41] as const, [-12, -9] as const];
          const mine = PREFERENCES[(i + adapter) % PREFERENCES.length]!;
          const preference = { objective: mine, totals, references: "reference" in mine ? references : null };
          return { ...common(adapter, 0.1), samples: [row(9, 13), row(4, 3)], preference };
        });
      return expectGradients(spec, { recomputation: "selective" }, sharesOf, preferenceLoss, adapters);
    });
});

// lambda so small that it, and not the ratio of the losses, is the weight: the ratio counts as a number, which differences do
// not see.
const PARAPHRASES: readonly Preference[] = [
  { name: "cit", lambda: 0.15, temperature: 0.3, pooling: "last" },
  { name: "cit", lambda: 0.2, temperature: 0.4, pooling: "mean" },
];

describe("contrastive instruction tuning", () => {
  for (const [i, objective] of PARAPHRASES.entries())
    test(`gradients agree with finite differences: pooling ${objective.name === "cit" && objective.pooling}, with another`, () => {
      const spec = tinyFamilies[["qwen3", "mistral"][i]!]!;
      const sharesOf = (rng: Rng): Segment[] =>
        adapters.map((_, adapter) => {
          const row = (own: number, other: number) => ({
            ...randomTokens(rng, spec.vocab, own),
            other: randomTokens(rng, spec.vocab, other),
          });
          const totals = { rows: 5, tokens: 60 };
          const mine = adapter === 0 ? objective : i === 0 ? PARAPHRASES[1]! : PREFERENCES[4]!;
          const samples = [row(9, 13), row(4, 3), row(7, 12), row(2, 5)];
          return { ...common(adapter, 0.1), samples, preference: { objective: mine, totals, references: null } };
        });
      return expectGradients(spec, { recomputation: "selective" }, sharesOf, preferenceLoss, adapters);
    });
});

// What a checkpoint gives back: every value of every tensor that an adapter has, whatever family, method and optimizer, on the
// same stages and on others; and nothing of what it does not hold.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { StageLayers } from "../../src/engine/weights/weights.ts";
import { isOfExperts, LINEARS, type Linear, linearsIn } from "../../src/families/linears.ts";
import { canCut } from "../../src/families/parts.ts";
import { checkpointsIn, readCheckpoint, writeCheckpoint } from "../../src/files/checkpoint.ts";
import { takeFactor } from "../../src/files/factors.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { type FactorTensor, factorPlace, placeAmong, tensorsIn } from "../../src/methods/layout.ts";
import { type Blocks, blocksIn, OPTIMIZERS, stateOf, type Values } from "../../src/methods/optimizers.ts";
import { PEFT_METHODS } from "../../src/methods/registry.ts";
import { layoutOf, stateBlocks } from "../../src/session/state/parameters.ts";
import { crowdTables } from "../helpers/crowd.ts";
import { inExperts, placedOn, sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-state-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const FAMILIES = { ...tinyFamilies, ...sparseFamilies };
type Adapter = Omit<PoolAdapter, "scale">;
type Stages = { readonly spec: ModelSpec; readonly stages: readonly { readonly layerRange: StageLayers }[] };

/** Adapters of each method and optimizer on all linears of a model, and those in experts. */
function adaptersOn(spec: ModelSpec): readonly Adapter[] {
  const all = linearsIn(spec);
  const pairs = [...PEFT_METHODS, "lora" as const].map((method, i) => [method, OPTIMIZERS[i % OPTIMIZERS.length]!] as const);
  const onAll = pairs.map(([method, optimizer], i) => {
    const targets = all.filter((linear) => method === "lora" || !isOfExperts(linear));
    const tables = method === "lora" ? crowdTables(i, spec) : undefined;
    const of = placedOn(spec, { rank: 3 + i, scale: 1, targets, method });
    return { ...of, optimizer, ...(tables ? { tables } : {}) };
  });
  const some = spec.experts === null ? [] : inExperts(spec).filter(({ targets }) => targets.length > 0);
  return [...onAll, ...some];
}

const onStages = (spec: ModelSpec, cuts: readonly number[]): Stages => {
  const ends = [0, ...cuts, spec.layers];
  const rangeOf = (to: number, i: number) => ({ from: ends[i]!, to, first: i === 0, last: to === spec.layers });
  return { spec, stages: ends.slice(1).map((to, i) => ({ layerRange: rangeOf(to, i) })) };
};

/** Blocks in which no two values are alike, with what lies between the tensors. */
const randomBlocks = (on: Stages, adapter: Adapter, rng: Rng): Blocks[] =>
  on.stages.map((_, stage) => {
    const { size } = layoutOf(on, stage, adapter);
    const of = (what: (typeof names)[number]): Values => {
      const { dtype, per } = stateOf(adapter.optimizer)[what]!;
      if (dtype === "u8") return Uint8Array.from({ length: size }, () => rng.below(256));
      return Float32Array.from({ length: size / per }, () => rng.normal());
    };
    const names = blocksIn(adapter.optimizer);
    return Object.fromEntries(names.map((what) => [what, of(what)])) as unknown as Blocks;
  });

/** All values of an adapter by the names of its tensors. */
function valuesOf(on: Stages, adapter: Adapter, blocks: readonly Blocks[]): Map<string, number[]> {
  const found = new Map<string, number[]>();
  for (const [stage, { layerRange }] of on.stages.entries())
    for (const what of blocksIn(adapter.optimizer))
      for (const { layer, linear, factor } of tensorsIn(on.spec, layerRange, adapter)) {
        const { per } = stateOf(adapter.optimizer)[what]!;
        const place = placeAmong(factorPlace(on.spec, layoutOf(on, stage, adapter), layer, linear, factor), per);
        found.set(`${what} ${layer} ${linear} ${factor}`, [...takeFactor(blocks[stage]![what]!, place)]);
      }
  return found;
}

const made = { settings: "{}", data: "d", model: "m" };
const progress = { adapter: "a", step: 3, tokens: 1, seconds: 1, firstLoss: 1, lastLoss: 1, before: null, best: null, made };

function written(on: Stages, adapter: Adapter, blocks: readonly Blocks[]) {
  const folder = mkdtempSync(join(root, "of-"));
  const stages = on.stages.map(({ layerRange }, stage) => {
    return { layerRange, layout: layoutOf(on, stage, adapter), blocks: blocks[stage]! };
  });
  writeCheckpoint(folder, progress, { spec: on.spec, ...adapter, stages }, 1);
  return readCheckpoint(checkpointsIn(folder)[0]!);
}

test.each(Object.entries(FAMILIES))("every tensor of an adapter comes back, on as many stages and on others, %s", (_, spec) => {
  const rng = new Rng(5, spec.layers);
  const whole = onStages(spec, []);
  const divided = onStages(spec, [canCut(spec, 0) ? 0.5 : 1]);
  for (const adapter of adaptersOn(spec))
    for (const [from, to] of [
      [whole, whole],
      [whole, divided],
      [divided, whole],
    ] as const) {
      const blocks = randomBlocks(from, adapter, rng);
      const { factors } = written(from, adapter, blocks);
      const was = valuesOf(from, adapter, blocks);
      expect(was.size).toBeGreaterThan(0);
      expect(valuesOf(to, adapter, stateBlocks(to, adapter, factors))).toEqual(was);
    }
});

test("these models have every linear that an adapter may target", () => {
  const had = new Set<Linear>(Object.values(FAMILIES).flatMap((spec) => linearsIn(spec)));
  expect(LINEARS.filter((linear) => !had.has(linear))).toEqual([]);
});

test("a tensor that is missing, or that the adapter has not, is refused by its name; none is taken for zeros", () => {
  const spec = FAMILIES["qwen3next"]!;
  const on = onStages(spec, [1]);
  const adapter = placedOn(spec, { rank: 2, scale: 1, targets: linearsIn(spec), method: "lora" });
  const { factors } = written(on, adapter, randomBlocks(on, adapter, new Rng(1)));
  const change = (to: (all: readonly FactorTensor<Values>[]) => readonly FactorTensor<Values>[]) => () =>
    stateBlocks(on, adapter, (what) => (what === "m" ? to(factors(what)) : factors(what)));
  const isOne = ({ linear, factor, layer }: FactorTensor<Values>) =>
    (linear as string) === "mlp.shared_expert.up_proj" && factor === "B" && layer === 2;
  expect(change((all) => all.filter((of) => !isOne(of)))).toThrow("no m of layer 2, mlp.shared_expert.up_proj, B");
  const other = (all: readonly FactorTensor<Values>[]) =>
    ({ ...all.find(isOne)!, linear: "mlp" }) as unknown as FactorTensor<Values>;
  expect(change((all) => [...all, other(all)])).toThrow("m of layer 2, mlp, B, which it does not train");
  expect(change((all) => all.map((of) => (isOne(of) ? { ...of, values: of.values.subarray(1) } : of)))).toThrow("values for a");
});

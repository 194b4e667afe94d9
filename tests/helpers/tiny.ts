// Tiny random models and data for tests: no files, unequal sizes, nothing at its default.

import { Rng } from "../../src/base/rng.ts";
import { sizeOf, sum } from "../../src/base/shape.ts";
import type { ModelSpec, RopeScaling } from "../../src/base/spec.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import type { StageSizes } from "../../src/engine/buffers.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor, StageLayers } from "../../src/engine/weights.ts";
import { oneRope, PLAIN, sameInAll } from "../../src/families/dense.ts";
import { type Linear, linearsOfModel } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import type { FactorTensor } from "../../src/methods/layout.ts";
import { blockBytes, lowSizes, poolBytes, productSizes } from "../../src/plan/adapter-memory.ts";
import { stageMemory } from "../../src/plan/memory.ts";
import { totalBytes } from "../../src/plan/plan.ts";
import type { Tokens } from "../../src/schedule/pack.ts";
import { readAdapter, writeAdapter } from "./factors.ts";

/** The linears of Llama, and of most families. */
export const LINEARS: readonly Linear[] = linearsOfModel({ family: "llama" });

/** `ropeScaling` is that of the one rope. */
export function tinySpec({
  ropeScaling = null,
  ...changes
}: Partial<ModelSpec> & { ropeScaling?: RopeScaling | null } = {}): ModelSpec {
  const { layers = 2, headDim = 8 } = changes;
  return {
    ...PLAIN,
    family: "llama",
    layers,
    hidden: 24,
    intermediate: 40,
    heads: 4,
    kvHeads: 2,
    headDim,
    vocab: 53,
    normEps: 1e-5,
    attentionScale: 1 / Math.sqrt(headDim),
    ...oneRope({ layers }, { headDim, rotated: headDim, theta: 10000, scaling: ropeScaling, queryScale: null }),
    maxPositions: 128,
    windows: sameInAll(layers, null),
    tiedEmbeddings: false,
    ...changes,
  };
}

/** The families whose layers differ, each in its own way. */
export const tinyFamilies: Readonly<Record<string, ModelSpec>> = {
  llama: tinySpec({
    ropeScaling: { kind: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 16 },
  }),
  mistral: tinySpec({ family: "mistral", windows: [5, 5], kvHeads: 1 }),
  qwen2: tinySpec({ family: "qwen2", qkvBias: true, tiedEmbeddings: true, windows: [null, 7] }),
  qwen3: tinySpec({ family: "qwen3", qkNorm: true, headDim: 10 }),
  biased: tinySpec({ qkvBias: true, oBias: true, mlpBias: true, ropeScaling: { kind: "linear", factor: 2 } }),
};

/**
 * Random weights: norms about 1, biases about 0, matrices that keep the stream's size. A function of name and seed; exact in
 * bf16, so that all devices have the same.
 */
export const randomFill =
  (device: Device, seed: number): FillTensor =>
  (name: string, to: Tensor) => {
    const rng = new Rng(seed, ...new TextEncoder().encode(name));
    const width = to.shape.at(-1)!;
    const norm = name.includes("norm");
    const scale = norm ? 0.3 : name.includes("embed") || name.includes("lm_head") ? 0.5 : 1 / Math.sqrt(width);
    const values = Float32Array.from({ length: sizeOf(to.shape) }, () => (norm ? 1 : 0) + scale * rng.normal());
    const halves = Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16);
    device.write(to, to.dtype === "f32" ? Uint32Array.from(halves, (bits) => bits << 16) : halves);
  };

export const wholeModel = (spec: ModelSpec): StageLayers => ({ from: 0, to: spec.layers, first: true, last: true });

/** A row of random tokens, with about a third of them prompt. */
export function randomTokens(rng: Rng, vocab: number, length: number): Tokens {
  const prompt = Math.max(1, Math.floor(length * rng.uniform() * 0.7));
  return {
    ids: Int32Array.from({ length }, () => rng.below(vocab)),
    mask: Uint8Array.from({ length }, (_, i) => (i >= prompt ? 1 : 0)),
  };
}

export const tinySizes = (device: Device, adapters: readonly PoolAdapter[], changes: Partial<StageSizes> = {}): StageSizes => {
  const [rows, layers] = [changes.rows ?? 256, changes.layers ?? 2];
  return {
    slots: adapters.length,
    rows,
    targets: 256,
    chunk: device.rowTile,
    layers,
    low: lowSizes(adapters, { from: 0, to: layers }, rows),
    products: productSizes(adapters),
    recomputation: "selective",
    inFlight: 1,
    positions: 64,
    format: "dense",
    ...changes,
  };
};

/** Bytes of the whole model's stage with all adapters in their slots, as the plan counts them. */
export function plannedBytes(device: Device, spec: ModelSpec, sizes: StageSizes, adapters: readonly PoolAdapter[]): number {
  const layers = wholeModel(spec);
  const blocks = sum(adapters.map((adapter) => blockBytes(spec, layers, [adapter], device)));
  const pool = poolBytes(spec, layers, sizes.slots, blocks);
  return totalBytes(stageMemory(spec, layers, sizes, device, pool));
}

/** Random factors, so that gradients of all are alive: a function of the seed and the place, on any number of stages. */
export async function randomFactors(stage: Stage, adapter: number, seed: number): Promise<readonly FactorTensor[]> {
  return (await readAdapter(stage, adapter)).map((at) => {
    const rng = new Rng(seed, at.layer, LINEARS.indexOf(at.linear), ["A", "B", "M", "lambda_d", "lambda_b"].indexOf(at.factor));
    const middle = at.factor === "M" ? 1 : 0; // lengths of rows
    return { ...at, values: Float32Array.from(at.values, () => middle + 0.3 * rng.normal()) };
  });
}

/** A stage with the whole of a random model, and adapters with random factors. */
export async function tinyStage(
  device: Device,
  spec: ModelSpec,
  adapters: readonly PoolAdapter[],
  seeds: readonly number[],
  changes: Partial<StageSizes> = {},
): Promise<Stage> {
  const sizes = tinySizes(device, adapters, { layers: spec.layers, ...changes });
  const config = { spec, layerRange: wholeModel(spec), sizes };
  const stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) await stage.admit(slot, { ...adapter, seed: slot, init: "default" });
  for (const [slot, seed] of seeds.entries()) await writeAdapter(stage, slot, await randomFactors(stage, slot, seed));
  return stage;
}

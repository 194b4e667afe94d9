// Tiny random models and data for tests: no files, unequal sizes, nothing at its default.

import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf, sum } from "../../src/base/shape.ts";
import type { ModelSpec, RopeScaling } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import type { StageSizes } from "../../src/engine/layers/buffers.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor, StageLayers } from "../../src/engine/weights/weights.ts";
import { oneRope, PLAIN, sameInAll } from "../../src/families/dense.ts";
import { GROUPS, groupsOfLayer, isOfExperts, type Linear, linearsIn, linearsOfModel } from "../../src/families/linears.ts";
import { NORMALISED, PLAIN_EXPERTS } from "../../src/families/moe.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import type { FactorTensor } from "../../src/methods/layout.ts";
import { placed, rankAt, scaleAt, sharingOf } from "../../src/methods/placement.ts";
import { blockBytes, gradientElements, lowSizes, lowWidths, poolBytes, productSizes } from "../../src/plan/adapter-memory.ts";
import { stageMemory } from "../../src/plan/memory.ts";
import { totalBytes } from "../../src/plan/plan.ts";
import type { Tokens } from "../../src/schedule/pack.ts";
import { readAdapter, writeAdapter } from "./factors.ts";
import { LATENTS, tinyLatent } from "./latent.ts";
import { OTHER_NAMES } from "./other-names.ts";

/** The linears of Llama, and of most families. */
export const LINEARS: readonly Linear[] = linearsOfModel({ family: "llama" });

/** The linears of a model that are called one of these, or hold one that is. */
const namedIn = (spec: Pick<ModelSpec, "family">, names: readonly Linear[]): readonly Linear[] =>
  linearsOfModel(spec).filter((linear) =>
    [linear, ...(OTHER_NAMES[linear] ?? [])].some((name) => names.includes(name as Linear)),
  );

/** An adapter on the same linears of another model, in the same layers. */
export function adapterOn<T extends PoolAdapter>(spec: ModelSpec, adapter: T): T {
  const { places, targets } = adapter;
  const isOwn = targets.some((linear) => !LINEARS.includes(linear));
  if (spec.kvSources.length > 0 || spec.experts !== null || isOwn) return placedOn(spec, adapter);
  const isEven = range(spec.layers).every((layer) => `${groupsOfLayer(spec, layer)}` === `${groupsOfLayer(spec, 0)}`);
  if (!places && isEven) return { ...adapter, targets: namedIn(spec, targets) };
  const at = (layer: number, linear: Linear) => {
    if (!groupsOfLayer(spec, layer).some((group) => GROUPS[group].includes(linear))) return null;
    const names = linearsOfModel({ family: "llama" }).filter((name) => namedIn(spec, [name]).includes(linear));
    const place = names.map((name) => ({ rank: rankAt(adapter, layer, name), scale: scaleAt(adapter, layer, name) }));
    return place.find(({ rank }) => rank > 0) ?? null;
  };
  const own = new Set<string>(linearsOfModel(spec));
  const moved = placed(places?.ranks.length ?? spec.layers, (layer, linear) => (own.has(linear) ? at(layer, linear) : null));
  return { ...adapter, ...moved, ...(adapter.trainedRank === undefined ? {} : { trainedRank: moved.rank / 2 }) };
}

type Experts = NonNullable<ModelSpec["experts"]>;

/** Eight experts, three a token. */
export const tinyExperts = (
  layers: number,
  { router, ...changes }: Partial<Omit<Experts, "router">> & { router?: Partial<Experts["router"]> } = {},
): Experts => ({
  ...{ ...PLAIN_EXPERTS, count: 8, perToken: 3, intermediate: 16, layers: sameInAll(layers, true) },
  router: { ...NORMALISED, ...router },
  ...changes,
});

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
  gemma2: tinySpec({
    ...{ family: "gemma2", windows: [7, null], headDim: 12, attentionScale: 0.5, attentionCap: 1.3 },
    ...{ embeddingScale: Math.sqrt(24), logitCap: 2.5, tiedEmbeddings: true },
  }),
  gemma3: tinySpec({
    ...{ family: "gemma3", windows: [5, null], qkNorm: true, attentionScale: 0.2, logitScale: 0.7 },
    ropes: [
      { headDim: 8, rotated: 8, theta: 300, scaling: { kind: "linear", factor: 4 }, queryScale: null },
      { headDim: 8, rotated: 8, theta: 20, scaling: null, queryScale: null },
    ],
    ...{ layerRopes: [1, 0], embeddingScale: Math.sqrt(24), tiedEmbeddings: true },
  }),
  biased: tinySpec({ qkvBias: true, oBias: true, mlpBias: true, ropeScaling: { kind: "linear", factor: 2 } }),
  smollm3: tinySpec({ family: "smollm3", layerRopes: [0, null], windows: [null, 6] }),
  granite: tinySpec({ family: "granite", normEps: 2e-3, embeddingScale: 7.3, attentionScale: 0.21, logitScale: 0.31 }),
  granite4: tinySpec({
    family: "granitemoehybrid",
    layerRopes: [null, null],
    embeddingScale: 0.4,
    logitScale: 1.7,
    kvHeads: 1,
  }),
  phi3: tinySpec({
    family: "phi3",
    windows: [9, 9],
    attentionScale: 0.1, // a factor of q and k at once turns the scores far
    ...oneRope(
      { layers: 2 },
      {
        ...{ headDim: 8, rotated: 6, theta: 10000, queryScale: null },
        scaling: { kind: "longrope", short: [1, 1.3, 2], long: [1, 3, 9], originalMaxPositions: 16, magnitude: 1.19 },
      },
    ),
  }),
  ministral3: tinySpec({
    family: "ministral3",
    ...oneRope(
      { layers: 2 },
      {
        ...{ headDim: 8, rotated: 8, theta: 1000, queryScale: { beta: 0.4, originalMaxPositions: 4 } },
        scaling: {
          ...{ kind: "yarn", factor: 4, originalMaxPositions: 16, betaFast: 4, betaSlow: 1, truncate: true, magnitude: 1.1 },
        },
      },
    ),
  }),
  olmo3: tinySpec({ family: "olmo3", windows: [5, null], kvHeads: 1, layerRopes: [0, 0] }),
  youtu: tinySpec({ ...tinyLatent(12, { queryRank: 24, bias: true }), family: "youtu", oBias: true, mlpBias: true }),
  minicpm3: tinySpec({
    ...tinyLatent(10, { queryRank: null, heads: { value: 10, isInterleaved: false } }),
    ...{ family: "minicpm3", normEps: 2e-3, embeddingScale: 3.1, logitScale: 0.6, tiedEmbeddings: true },
  }),
  muse: tinySpec({
    family: "muse_glimmer",
    tower: "model.language_model",
    ...{ layerRopes: [0, null], windows: [6, null], embeddingNorm: 1e-2, postNormEps: 1e-8, logitScale: 0.7, logitCap: 3 },
    attentionScale: 1.4,
  }),
};

const HYBRID = {
  ...{ tower: "model.language_model", kvHeads: 2, headDim: 12, normEps: 1e-3 },
  delta: { heads: { keyHeads: 2, valueHeads: 4, keyDim: 6, valueDim: 10 }, layers: [true, false] },
  ...{ ropes: [{ headDim: 12, rotated: 6, theta: 300, scaling: null, queryScale: null }], layerRopes: [null, 0] },
};

const MAMBA = {
  heads: { heads: 6, headDim: 5, groups: 2, stateDim: 7 },
  ...{ limits: { least: 0.2, most: 2.5 }, convolutionBias: true, bias: false, normEps: 1 },
};

/**
 * Families whose layers have unequal linears, for adapters placed on them: Gemma 4 with keys as values, shared keys and values,
 * and inputs of each layer's own; mixtures of experts.
 */
export const sparseFamilies: Readonly<Record<string, ModelSpec>> = {
  gemma4: tinySpec({
    ...{ family: "gemma4", layers: 4, windows: [5, null, 5, null], kvSources: [null, null, 0, 1], keysAsValues: true },
    ...{ fullHeads: { kvHeads: 1, headDim: 12 }, doubleWide: true, perLayer: { size: 8, vocab: 53 }, attentionScale: 0.7 },
    ropes: [
      { headDim: 12, rotated: 12, theta: 50, scaling: { kind: "proportional", factor: 1, share: 0.5 }, queryScale: null },
      { headDim: 8, rotated: 8, theta: 20, scaling: null, queryScale: null },
    ],
    ...{ layerRopes: [1, 0, 1, 0], embeddingScale: Math.sqrt(24), tiedEmbeddings: true, logitCap: 3 },
  }),
  qwen3_5: tinySpec({ ...HYBRID, family: "qwen3_5" }),
  mixtral: tinySpec({ family: "mixtral", experts: tinyExperts(2, { perToken: 2 }) }),
  gptOss: tinySpec({
    ...{ family: "gpt_oss", qkvBias: true, oBias: true, windows: [5, null] },
    experts: tinyExperts(2, { clamp: { limit: 0.8, alpha: 1.702 }, files: "rows" }),
  }),
  glm4moe: tinySpec({
    ...{ family: "glm4_moe", layers: 3, windows: [null, 5, null], layerRopes: [0, 0, 0], qkvBias: true },
    experts: tinyExperts(3, {
      ...{ layers: [false, true, true], shared: 24 },
      router: { score: "sigmoid", eps: 1e-20, groups: 4, keptGroups: 2, scaling: 1.8 },
    }),
  }),
  qwen3moe: tinySpec({
    ...{ family: "qwen3_moe", layers: 3, windows: [null, 5, null], layerRopes: [0, 0, 0], qkNorm: true },
    experts: tinyExperts(3, { layers: [true, false, true], router: { normalise: false } }),
  }),
  qwen3_5moe: tinySpec({
    ...{ ...HYBRID, family: "qwen3_5_moe", attentionScale: 0.7 },
    experts: tinyExperts(2, { shared: 16, files: "rows" }),
  }),
  qwen3next: tinySpec({
    ...{ ...HYBRID, family: "qwen3_next", tower: "model", layers: 3, windows: [null, null, null] },
    ...{ delta: { heads: HYBRID.delta.heads, layers: [true, false, true] }, layerRopes: [null, 0, null] },
    experts: tinyExperts(3, { layers: [true, false, true], shared: 16 }),
  }),
  lfm2: tinySpec({
    ...{ family: "lfm2", headDim: 12, normEps: 1e-3, tiedEmbeddings: true },
    ...{ convolutions: [true, false], layerRopes: [null, 0] },
  }),
  granite_h: tinySpec({
    ...{ family: "granite_h", embeddingScale: 2, logitScale: 1, kvHeads: 1, layerRopes: [null, null] },
    mamba: { ...MAMBA, bias: true, layers: [true, false] },
  }),
  graniteHmoe: tinySpec({
    ...{ family: "granite_h", layerRopes: [null, 0], embeddingScale: 1.4 },
    mamba: { ...MAMBA, convolutionBias: false, limits: { least: 0, most: null }, layers: [false, true] },
    experts: tinyExperts(2, { files: "rows" }),
  }),
  nemotronH: tinySpec({
    ...{ family: "nemotron_h", layers: 2, layerRopes: [null, null], embeddingScale: 2, mlpBias: true },
    mamba: { ...MAMBA, bias: true, layers: [true, false] },
    attentionLayers: [false, true],
  }),
  nemotronHmoe: tinySpec({
    ...{ family: "nemotron_h", layerRopes: [null, null], embeddingScale: 2 },
    mamba: { ...MAMBA, layers: [false, false] },
    attentionLayers: [false, false],
    experts: tinyExperts(2, { layers: [true, false], shared: 24, router: { score: "sigmoid", eps: 1e-20, scaling: 1.8 } }),
  }),
  deepseekV2: tinySpec({
    ...{ ...tinyLatent(10, { queryRank: null }), family: "deepseek_v2" },
    experts: tinyExperts(2, { shared: 24, router: { normalise: false, groups: 4, keptGroups: 2, scaling: 1.8 } }),
  }),
  deepseekV3: tinySpec({
    ...tinyLatent(12, { rank: 24, heads: { plain: 3, rotated: 6, value: 12 } }),
    family: "deepseek_v3",
    experts: tinyExperts(2, {
      ...{ layers: [false, true], shared: 16 },
      router: { score: "sigmoid", eps: 1e-20, groups: 2, keptGroups: 1, scaling: 1.8 },
    }),
  }),
  lfm2moe: tinySpec({
    ...{ family: "lfm2_moe", convolutions: [false, true], layerRopes: [0, null] },
    experts: tinyExperts(2, { layers: [false, true], router: { score: "sigmoid", eps: 1e-6, scaling: 1.8 } }),
  }),
};

/** Adapters in experts: shared factors, own ones, parts of the experts with other ranks, and none of them. */
export function inExperts(spec: ModelSpec): readonly PoolAdapter[] {
  const own = linearsIn(spec).filter(isOfExperts);
  const at = (ranks: readonly number[], sharing: "shared-outer" | "per-expert", attention: number) =>
    placed(
      spec.layers,
      (layer, linear) => {
        const rank = linear === "q_proj" ? attention : (ranks[own.indexOf(linear)] ?? 0);
        const has = groupsOfLayer(spec, layer).some((group) => GROUPS[group].includes(linear));
        return rank === 0 || !has ? null : { rank, scale: 0.4 + rank / 5 };
      },
      sharing,
    );
  const last = own.length - 1;
  return [
    at(
      own.map(() => 3),
      "shared-outer",
      2,
    ),
    at(
      own.map(() => 5),
      "per-expert",
      0,
    ),
    at(
      own.map((_, i) => (i === last ? 4 : 0)),
      "shared-outer",
      1,
    ),
    at(
      own.map((_, i) => (i === 0 ? 17 : 0)),
      "per-expert",
      3,
    ),
    at([], "shared-outer", 4),
  ];
}

/** An adapter without what the model lacks, in some layers or in all. */
export function placedOn<T extends PoolAdapter>(spec: ModelSpec, adapter: T): T {
  const known = adapter.places?.ranks.length ?? spec.layers;
  const has = (layer: number, linear: Linear) => groupsOfLayer(spec, layer).some((group) => GROUPS[group].includes(linear));
  const found = placed(
    spec.layers,
    (layer, linear) => {
      if (layer >= known || !has(layer, linear)) return null;
      const names = [linear, ...((LATENTS.has(linear) && OTHER_NAMES[linear]) || [])] as readonly Linear[];
      const name = names.find((of) => rankAt(adapter, layer, of) > 0);
      return name ? { rank: rankAt(adapter, layer, name), scale: scaleAt(adapter, layer, name) } : null;
    },
    sharingOf(adapter),
  );
  const { places, ...rest } = adapter;
  return { ...rest, ...found, ...(adapter.trainedRank === undefined ? {} : { trainedRank: found.rank / 2 }) } as T;
}

/**
 * Random weights: norms about 1, biases about 0, matrices that keep the stream's size. A function of name and seed; exact in
 * bf16, so that all devices have the same.
 */
export const randomFill =
  (device: Device, seed: number): FillTensor =>
  (name, to, { part }) => {
    const rng = new Rng(seed, ...new TextEncoder().encode(part ? `${name} ${part.first}` : name));
    const width = to.shape.at(-1)!;
    const norm = name.includes("norm") || name.includes("scalar");
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

export const tinySizes = (
  device: Device,
  spec: ModelSpec,
  adapters: readonly PoolAdapter[],
  changes: Partial<StageSizes> = {},
): StageSizes => {
  const [rows, layers] = [changes.rows ?? 256, changes.layers ?? 2];
  const to = Math.max(layers, ...adapters.map(({ places }) => places?.ranks.length ?? 0)); // of a later stage, too
  return {
    slots: adapters.length,
    rows,
    targets: 256,
    chunk: device.rowTile,
    layers,
    low: lowSizes(lowWidths(adapters, { from: 0, to }), rows, changes.chunk ?? device.rowTile),
    products: productSizes(adapters),
    blockBytes: 0,
    hostBytes: 0,
    gradients: adapters.map((adapter) => gradientElements(spec, wholeModel(spec), adapter)),
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
  const pool = poolBytes(spec, layers, sizes, blocks, device.kind);
  return totalBytes(stageMemory(spec, layers, sizes, device, pool));
}

/** Random factors, so that gradients of all are alive: a function of the seed and the place, on any number of stages. */
export async function randomFactors(stage: Stage, adapter: number, seed: number): Promise<readonly FactorTensor[]> {
  return (await readAdapter(stage, adapter)).map((at) => {
    const rng = new Rng(
      seed,
      at.layer,
      (LINEARS as readonly string[]).indexOf(at.linear),
      ["A", "B", "M", "lambda_d", "lambda_b"].indexOf(at.factor),
    );
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
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, ...changes });
  const config = { spec, layerRange: wholeModel(spec), sizes };
  const stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) await stage.admit(slot, { ...adapter, seed: slot, init: "default" });
  for (const [slot, seed] of seeds.entries()) await writeAdapter(stage, slot, await randomFactors(stage, slot, seed));
  return stage;
}

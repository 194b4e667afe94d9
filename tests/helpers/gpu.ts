// Tiny models whose sizes GPU kernels take (multiples of 8), and devices to run them on. Nothing else is at its default.

import type { ModelSpec } from "../../src/base/spec.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import { oneRope } from "../../src/families/dense.ts";
import { tinyLatent } from "./latent.ts";
import { tinyExperts, tinySpec } from "./tiny.ts";

/** Families whose layers differ, with head sizes that the kernels treat differently; the vocabulary is odd on purpose. */
export const gpuFamilies: Readonly<Record<string, ModelSpec>> = {
  llama: tinySpec({
    hidden: 72,
    intermediate: 200,
    headDim: 64,
    vocab: 1003,
    ropeScaling: { kind: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 16 },
  }),
  mistral: tinySpec({ family: "mistral", hidden: 64, intermediate: 136, headDim: 12, kvHeads: 2, windows: [5, 130] }),
  qwen2: tinySpec({
    family: "qwen2",
    hidden: 128,
    intermediate: 264,
    headDim: 64,
    heads: 6,
    kvHeads: 2,
    qkvBias: true,
    tiedEmbeddings: true,
    windows: [null, 7],
  }),
  qwen3: tinySpec({ family: "qwen3", hidden: 256, intermediate: 320, qkNorm: true, headDim: 128, heads: 3, kvHeads: 1 }),
  biased: tinySpec({
    hidden: 136,
    intermediate: 96,
    headDim: 40,
    qkvBias: true,
    oBias: true,
    mlpBias: true,
    ropeScaling: { kind: "linear", factor: 2 },
  }),
  granite: tinySpec({
    ...{ family: "granite", hidden: 64, intermediate: 136, headDim: 64, vocab: 1003, normEps: 2e-3 },
    ...{ embeddingScale: 7.3, attentionScale: 0.07, logitScale: 1.31, layerRopes: [0, null] },
  }),
  phi3: tinySpec({
    ...{ family: "phi3", hidden: 64, intermediate: 136, headDim: 64, windows: [70, 70] },
    ...oneRope({ layers: 2 }, { headDim: 64, rotated: 40, theta: 10000, scaling: null, queryScale: null }),
  }),
  ministral3: tinySpec({
    ...{ family: "ministral3", hidden: 64, intermediate: 136, headDim: 128 },
    ...oneRope(
      { layers: 2 },
      { headDim: 128, rotated: 128, theta: 1000, scaling: null, queryScale: { beta: 0.4, originalMaxPositions: 20 } },
    ),
  }),
  olmo3: tinySpec({ family: "olmo3", hidden: 64, intermediate: 136, headDim: 32, kvHeads: 1, windows: [40, null] }),
  muse: tinySpec({
    ...{ family: "muse_glimmer", hidden: 64, intermediate: 136, headDim: 64, layerRopes: [0, null], windows: [60, null] },
    ...{ embeddingNorm: 1e-2, postNormEps: 1e-8, logitScale: 1.7, logitCap: 9, attentionScale: 0.4 },
  }),
  youtu: tinySpec({
    ...tinyLatent(64, { queryRank: 72, rank: 40, heads: { plain: 24, rotated: 16, value: 64 } }),
    ...{ family: "youtu", hidden: 72, intermediate: 136, tiedEmbeddings: true },
  }),
  gemma2: tinySpec({
    ...{ family: "gemma2", hidden: 64, intermediate: 136, headDim: 256, heads: 2, kvHeads: 1, windows: [60, null] },
    ...{ attentionScale: 0.05, attentionCap: 2, embeddingScale: 8, logitCap: 5, tiedEmbeddings: true },
  }),
  gemma3: tinySpec({
    ...{
      family: "gemma3",
      hidden: 64,
      intermediate: 136,
      headDim: 256,
      heads: 4,
      kvHeads: 1,
      windows: [60, null],
      qkNorm: true,
    },
    ...{ attentionScale: 0.02, embeddingScale: 8, tiedEmbeddings: true, layerRopes: [1, 0], ropes: ropesOf(256, 256) },
  }),
};

/** Two kinds of layers, each with a rope of its own head size. */
function ropesOf(full: number, sliding: number): ModelSpec["ropes"] {
  return [
    { headDim: full, rotated: full, theta: 1e6, scaling: { kind: "linear", factor: 8 }, queryScale: null },
    { headDim: sliding, rotated: sliding, theta: 1e4, scaling: null, queryScale: null },
  ];
}

const HYBRID = {
  ...{ tower: "model.language_model", hidden: 64, intermediate: 136, vocab: 1003, normEps: 1e-3 },
  ...{ headDim: 256, heads: 2, kvHeads: 1, attentionScale: 0.06 },
  delta: { heads: { keyHeads: 4, valueHeads: 8, keyDim: 16, valueDim: 24 }, layers: [true, false] },
  ...{ ropes: [{ headDim: 256, rotated: 64, theta: 300, scaling: null, queryScale: null }], layerRopes: [null, 0] },
};

const MAMBA = {
  heads: { heads: 8, headDim: 16, groups: 2, stateDim: 12 },
  ...{ limits: { least: 0.2, most: 2.5 }, convolutionBias: true, bias: false, normEps: 1 },
};

/**
 * Families whose layers have unequal linears, for adapters that are placed on them, mixtures of experts among them; a cut at
 * layer 1 parts no shared keys.
 */
export const sparseGpuFamilies: Readonly<Record<string, ModelSpec>> = {
  gemma4: tinySpec({
    ...{ family: "gemma4", hidden: 64, intermediate: 136, headDim: 256, heads: 4, kvHeads: 2, layers: 5, vocab: 1003 },
    ...{ windows: [60, 60, null, 60, null], kvSources: [null, null, null, 1, 2], layerRopes: [1, 1, 0, 1, 0] },
    ...{ fullHeads: { kvHeads: 1, headDim: 512 }, keysAsValues: true, doubleWide: true, perLayer: { size: 64, vocab: 1003 } },
    ...{ attentionScale: 0.03, embeddingScale: 8, logitCap: 5, tiedEmbeddings: true, ropes: ropesOf(512, 256) },
  }),
  qwen3_5: tinySpec({ ...HYBRID, family: "qwen3_5" }),
  qwen3_5moe: tinySpec({
    ...{ ...HYBRID, family: "qwen3_5_moe" },
    experts: tinyExperts(2, { count: 16, perToken: 4, intermediate: 72, shared: 136, files: "rows" }),
  }),
  qwen3next: tinySpec({
    ...{ ...HYBRID, family: "qwen3_next", tower: "model" },
    experts: tinyExperts(2, { intermediate: 72, shared: 64, layers: [true, false] }),
  }),
  lfm2: tinySpec({
    ...{ family: "lfm2", hidden: 72, intermediate: 136, headDim: 64, heads: 4, kvHeads: 2, vocab: 1003, tiedEmbeddings: true },
    ...{ convolutions: [true, false], layerRopes: [null, 0], normEps: 3e-3 },
  }),
  deepseekV2: tinySpec({
    ...tinyLatent(256, { queryRank: null, rank: 40, bias: true, heads: { plain: 128, rotated: 64, value: 128 } }),
    ...{
      family: "deepseek_v2",
      hidden: 64,
      intermediate: 136,
      heads: 2,
      kvHeads: 2,
      vocab: 1003,
      oBias: true,
      attentionScale: 0.07,
    },
    experts: tinyExperts(2, {
      ...{ count: 16, perToken: 4, intermediate: 72, shared: 136, layers: [false, true] },
      router: { normalise: false, groups: 4, keptGroups: 2, scaling: 1.8 },
    }),
  }),
  deepseekV3: tinySpec({
    ...tinyLatent(128, { queryRank: 48, rank: 32, heads: { plain: 64, rotated: 24, value: 80, isInterleaved: false } }),
    ...{ family: "deepseek_v3", hidden: 64, intermediate: 136, heads: 3, kvHeads: 3, vocab: 1003, attentionScale: 0.1 },
    experts: tinyExperts(2, {
      ...{ count: 16, perToken: 4, intermediate: 72, shared: 64 },
      router: { score: "sigmoid", eps: 1e-20, groups: 2, keptGroups: 1, scaling: 1.8 },
    }),
  }),
  lfm2moe: tinySpec({
    ...{ family: "lfm2_moe", hidden: 64, headDim: 64, heads: 2, kvHeads: 1, vocab: 1003 },
    ...{ convolutions: [false, true], layerRopes: [0, null] },
    experts: tinyExperts(2, {
      ...{ count: 16, perToken: 4, intermediate: 72, layers: [false, true] },
      router: { score: "sigmoid", eps: 1e-6, scaling: 1.8 },
    }),
  }),
  granite_h: tinySpec({
    ...{ family: "granite_h", hidden: 64, intermediate: 136, headDim: 64, heads: 2, kvHeads: 1, vocab: 1003 },
    ...{ embeddingScale: 2, logitScale: 3, layerRopes: [null, null], normEps: 2e-2 },
    mamba: { ...MAMBA, bias: true, layers: [true, false] },
  }),
  graniteHmoe: tinySpec({
    ...{ family: "granite_h", hidden: 72, intermediate: 136, headDim: 64, heads: 2, kvHeads: 1, vocab: 1003 },
    ...{ layerRopes: [null, 0], embeddingScale: 1.4 },
    mamba: { ...MAMBA, convolutionBias: false, limits: { least: 0, most: null }, layers: [false, true] },
    experts: tinyExperts(2, { count: 16, perToken: 4, intermediate: 72, files: "rows" }),
  }),
  nemotronH: tinySpec({
    ...{ family: "nemotron_h", hidden: 64, intermediate: 136, headDim: 64, heads: 2, kvHeads: 1, vocab: 503, mlpBias: true },
    ...{ layers: 3, windows: [null, null, null], layerRopes: [null, null, null], embeddingScale: 2, normEps: 2e-2 },
    mamba: { ...MAMBA, heads: { heads: 16, headDim: 8, groups: 1, stateDim: 24 }, bias: true, layers: [true, false, false] },
    attentionLayers: [false, true, false],
  }),
  nemotronHmoe: tinySpec({
    ...{ family: "nemotron_h", hidden: 64, headDim: 64, heads: 2, kvHeads: 1, vocab: 1003, layerRopes: [null, null] },
    ...{ embeddingScale: 2, normEps: 3e-2, attentionLayers: [false, false] },
    mamba: { ...MAMBA, layers: [true, false] },
    experts: tinyExperts(2, {
      ...{ count: 16, perToken: 4, intermediate: 72, shared: 40, layers: [false, true] },
      router: { score: "sigmoid", eps: 1e-20, scaling: 1.8 },
    }),
  }),
  mixtral: tinySpec({
    ...{ family: "mixtral", hidden: 136, headDim: 64, heads: 2, kvHeads: 1, vocab: 1003 },
    experts: tinyExperts(2, { perToken: 2, intermediate: 72 }),
  }),
  gptOss: tinySpec({
    ...{ family: "gpt_oss", hidden: 72, headDim: 64, heads: 4, kvHeads: 2, qkvBias: true, oBias: true, windows: [60, null] },
    experts: tinyExperts(2, { count: 16, perToken: 4, intermediate: 136, clamp: { limit: 0.8, alpha: 1.702 }, files: "rows" }),
  }),
  qwen3moe: tinySpec({
    ...{ family: "qwen3_moe", hidden: 128, headDim: 64, heads: 2, kvHeads: 1, layers: 3, windows: [null, null, null] },
    ...{ layerRopes: [0, 0, 0], qkNorm: true },
    experts: tinyExperts(3, { count: 40, perToken: 8, intermediate: 64, layers: [true, false, true] }),
  }),
};

/**
 * What opens a device; with "ptr" one that runs the kernels of GPUs before Hopper, also where this is Hopper.
 */
export const openingGpu =
  (compute: "bf16" | "f32", kernels: "" | "ptr" = "") =>
  (): CudaDevice => {
    const before = process.env["MLORA_KERNELS"];
    if (kernels !== "") process.env["MLORA_KERNELS"] = kernels;
    try {
      return new CudaDevice(compute);
    } finally {
      if (before === undefined) delete process.env["MLORA_KERNELS"];
      else process.env["MLORA_KERNELS"] = before;
    }
  };

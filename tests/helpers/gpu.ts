// Tiny models whose sizes GPU kernels take (multiples of 8), and devices to run them on. Nothing else is at its default.

import type { ModelSpec } from "../../src/base/spec.ts";
import { tinySpec } from "./tiny.ts";

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
};

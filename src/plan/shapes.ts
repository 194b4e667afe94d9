// Well-known base models by name, as numbers: what a benchmark builds with random weights.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";

type Numbers = Pick<ModelSpec, "family" | "layers" | "hidden" | "intermediate" | "heads" | "kvHeads" | "vocab" | "ropeTheta"> &
  Partial<ModelSpec>;

const spec = (numbers: Numbers): ModelSpec => ({
  headDim: numbers.hidden / numbers.heads,
  normEps: 1e-5,
  ropeScaling: null,
  maxPositions: 8192,
  windows: Array.from({ length: numbers.layers }, () => null),
  qkvBias: numbers.family === "qwen2",
  oBias: false,
  mlpBias: false,
  qkNorm: numbers.family === "qwen3",
  tiedEmbeddings: false,
  ...numbers,
});

const llama = (
  layers: number,
  hidden: number,
  intermediate: number,
  heads: number,
  kvHeads: number,
  vocab = 32000,
  ropeTheta = 10000,
) => spec({ family: "llama", layers, hidden, intermediate, heads, kvHeads, vocab, ropeTheta });

export const SHAPES: Readonly<Record<string, ModelSpec>> = {
  "smollm2-135m": { ...llama(30, 576, 1536, 9, 3, 49152, 100000), tiedEmbeddings: true },
  "tinyllama-1.1b": llama(22, 2048, 5632, 32, 4),
  "llama2-7b": llama(32, 4096, 11008, 32, 32),
  "llama2-13b": llama(40, 5120, 13824, 40, 40),
  "llama3-8b": llama(32, 4096, 14336, 32, 8, 128256, 500000),
  "llama3-70b": llama(80, 8192, 28672, 64, 8, 128256, 500000),
  "qwen2.5-7b": spec({
    family: "qwen2",
    layers: 28,
    hidden: 3584,
    intermediate: 18944,
    heads: 28,
    kvHeads: 4,
    vocab: 152064,
    ropeTheta: 1e6,
  }),
  "qwen3-8b": spec({
    family: "qwen3",
    layers: 36,
    hidden: 4096,
    intermediate: 12288,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    vocab: 151936,
    ropeTheta: 1e6,
  }),
};

/** The shape of that name. A RequestError lists the names. */
export function shapeOf(name: string): ModelSpec {
  const found = SHAPES[name];
  if (!found || !Object.hasOwn(SHAPES, name))
    throw new RequestError("bench.shape", `no shape is called '${name}'`, `choose one of ${Object.keys(SHAPES).join(", ")}`);
  return found;
}

// VeRA (Kopiczko et al. 2024): y += b * (B (d * (A drop(x)))), with A and B random, frozen and shared (projection.ts), and
// the vectors d and b trained. PEFT draws A and B by PyTorch's generator, so a file has them next to its vectors.

import { about, positive, seed } from "../base/check.ts";
import { define, type PeftFields, type SettingsOf, type SharedTensors } from "./definition.ts";
import { lora } from "./lora.ts";
import { drawn, projectionOf } from "./projection.ts";

const keys = {
  projection_seed: about(seed, "VeRA: what its random projections are drawn from", 0),
  d_initial: about(positive(), "VeRA: what lambda_d begins as", 0.1),
};
type Vera = SettingsOf<typeof keys>;

const shared: SharedTensors<Vera> = {
  name: "projections",
  missing: "a VeRA's projections have to be in its file: have PEFT save it with save_projection=True",
  tensors(spec, targets, rank, { projectionSeed = 0 }) {
    const { width, height, a, b } = projectionOf(spec, targets, rank, projectionSeed);
    return [
      { name: "base_model.vera_A", shape: [rank, width], values: () => drawn(a, rank * width) },
      { name: "base_model.vera_B", shape: [height, rank], values: () => drawn(b, height * rank) },
    ];
  },
  /** diag(d) A and diag(b) B. */
  factor(name, width, [a, b], own) {
    if (name === "A") return scaledRows(a!.values, a!.columns, width, own("lambda_d"));
    return scaledRows(b!.values, b!.columns, b!.columns, own("lambda_b"));
  },
};

/** The config of PEFT's VeraConfig. */
const config = (fields: PeftFields<Vera>) => ({
  auto_mapping: null,
  base_model_name_or_path: fields.baseModel,
  bias: "none",
  d_initial: fields.settings.dInitial,
  fan_in_fan_out: false,
  inference_mode: true,
  init_weights: true,
  layers_pattern: null,
  layers_to_transform: fields.layers,
  modules_to_save: null,
  peft_type: "VERA",
  projection_prng_key: fields.settings.projectionSeed,
  r: fields.rank,
  revision: null,
  save_projection: true,
  target_modules: fields.targets,
  task_type: "CAUSAL_LM",
  vera_dropout: fields.dropout,
});

export const vera = define({
  title: "VeRA",
  tensors: {
    lambda_d: { axes: "rank", initial: ({ dInitial = 0.1 }: Vera) => dInitial, peft: "vera_lambda_d" },
    lambda_b: { axes: "out", initial: () => 0, peft: "vera_lambda_b" },
  },
  rank: 256, // costs no parameters: PEFT's default
  keys,
  settings: ["projection_seed", "d_initial"],
  continued: ["projection_seed"],
  beginsAsPart: false,
  peft: {
    peftType: "VERA",
    isOf: () => true,
    dropout: "vera_dropout",
    keys: ["r", "vera_dropout", "projection_prng_key", "save_projection", "d_initial", "init_weights"],
    config,
    settings: (read) => ({
      projectionSeed: Number(read["projection_prng_key"] ?? 0),
      dInitial: Number(read["d_initial"] ?? 0.1),
    }),
    shared,
  },
  merge: lora.merge,
});

/**
 * The first rows of a matrix with rows of `stride`, as many as there are factors, each cut to `width` and multiplied by its
 * own.
 */
function scaledRows(matrix: Float32Array, stride: number, width: number, factors: Float32Array): Float32Array {
  const out = new Float32Array(factors.length * width);
  for (const [i, factor] of factors.entries())
    for (let j = 0; j < width; j++) out[i * width + j] = matrix[i * stride + j]! * factor;
  return out;
}

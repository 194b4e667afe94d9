// Reader of the goldens in tests/golden/families: writes each model and its adapters as files, weights by the hash that make.py
// says, and what PEFT came to.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { hashText, mix } from "../../src/base/rng.ts";
import { sizeOf } from "../../src/base/shape.ts";
import { openSafetensors, writeSafetensors } from "../../src/files/safetensors.ts";
import { type FileAdapter, readTensors, recipeOf, rowOf, stepOf, type TrainedGolden } from "./golden.ts";

export const FAMILY_GOLDENS = [
  ...["qwen2_5_vl", "qwen3_vl", "mistral3", "ministral3", "smollm3", "granite", "granitemoehybrid", "phi3", "muse_glimmer"],
  ...[
    "olmo2",
    "olmo3",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "gpt_oss_experts",
    "granitemoe",
    "glm4_moe",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "lfm2",
    "lfm2_moe",
    "granite_h",
    "nemotron_h",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe_lite",
    "youtu",
    "minicpm3",
  ],
];

type Hashed = readonly [shape: readonly number[], middle: number, scale: number];
type File = {
  readonly probe: readonly number[];
  readonly prompt?: number;
  readonly model: { readonly config: object; readonly tensors: Readonly<Record<string, Hashed>> };
  readonly adapters: readonly (Omit<FileAdapter, "spread" | "before" | "init"> & {
    readonly adapter_config: object;
    readonly greedy?: readonly number[];
  })[];
};

export type FamilyGolden = Disposable & {
  readonly name: string;
  /** A Hugging Face folder. */
  readonly model: string;
  readonly adapters: readonly TrainedGolden[];
  /** A row of token ids; f32[probe.length, vocab] of the base model and of the first adapter as trained. */
  readonly probe: readonly number[];
  readonly logits: { readonly base: Float32Array; readonly all: Float32Array };
  /** The probe's first tokens, and what the first adapter writes after them. */
  readonly prompt: readonly number[];
  readonly greedy: readonly number[];
};

/** Uniform in middle +- scale, rounded once. */
function hashed(name: string, [shape, middle, scale]: Hashed): Float32Array {
  const key = hashText(name);
  return Float32Array.from({ length: sizeOf(shape) }, (_, i) => middle + ((mix(key ^ i) >>> 8) / 2 ** 23 - 1) * scale);
}

export function loadFamilyGolden(name: string): FamilyGolden {
  const kept = join(import.meta.dir, "..", "golden", "families", name);
  const file: File = JSON.parse(readFileSync(join(kept, "golden.json"), "utf8"));
  const folder = mkdtempSync(join(tmpdir(), `mlora-${name}-`));
  const at = (...names: readonly string[]) => {
    const path = join(folder, ...names);
    mkdirSync(path, { recursive: true });
    return path;
  };
  const model = at("model");
  writeFileSync(join(model, "config.json"), JSON.stringify(file.model.config));
  const weights = Object.entries(file.model.tensors).map(([tensor, of]) => {
    return { name: tensor, dtype: "f32", shape: of[0], data: hashed(tensor, of) } as const;
  });
  writeSafetensors(join(model, "model.safetensors"), weights);

  const numbers = readTensors(join(kept, "numbers.safetensors"));
  using stored = openSafetensors(join(kept, "numbers.safetensors"));
  const adapters = file.adapters.map((adapter): TrainedGolden => {
    const tensors = [...stored.tensors].flatMap(([key, { shape }]) =>
      key.startsWith(`${adapter.name}/`)
        ? [{ key, name: key.slice(adapter.name.length + 1), dtype: "f32" as const, shape }]
        : [],
    );
    const write = (which: string, data: (key: string, shape: readonly number[]) => Float32Array): string => {
      const to = at(adapter.name, which);
      writeFileSync(join(to, "adapter_config.json"), JSON.stringify(adapter.adapter_config));
      const values = tensors.map(({ key, ...of }) => ({ ...of, data: data(key, of.shape) }));
      writeSafetensors(join(to, "adapter_model.safetensors"), values);
      return to;
    };
    const scaleOf = (key: string, columns: number) => (key.includes(".lora_A.") ? 1.7 / Math.sqrt(columns) : 0.2);
    const initial = write("initial", (key, shape) => hashed(key, [shape, 0, scaleOf(key, shape[1]!)]));
    return {
      name: adapter.name,
      recipe: { ...recipeOf(adapter, initial), targets: adapter.targets, experts: "per-expert" },
      rows: adapter.rows.map(({ ids, mask }) => ({ ids: Int32Array.from(ids), mask: Uint8Array.from(mask) })),
      steps: adapter.steps.map(stepOf),
      after: adapter.after.map(rowOf),
      initial,
      final: write("final", numbers),
    };
  });
  return {
    ...{
      name,
      model,
      adapters,
      probe: file.probe,
      prompt: file.probe.slice(0, file.prompt ?? 6),
      greedy: file.adapters[0]!.greedy!,
    },
    logits: { base: numbers("logits/base"), all: numbers("logits/all") },
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}

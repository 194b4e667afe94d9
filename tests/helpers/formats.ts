// The base models of tests/golden/formats, as others quantise them, with what they stand for.

import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelConfig } from "../../src/files/config.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";
import { writeByteTokenizer } from "./model.ts";

export const FORMATS = join(import.meta.dir, "..", "golden", "formats");

export type FormatCase = {
  readonly ids: readonly number[];
  /** Of the row, by transformers with the values. */
  readonly loss: number;
  /** The SHA-256 of each tensor's values as f32. */
  readonly tensors: Readonly<Record<string, string>>;
  /** What a GGUF says in place of a config.json. */
  readonly config?: Readonly<Record<string, unknown>>;
};

export const FORMAT_CASES: Readonly<Record<string, FormatCase>> = JSON.parse(
  readFileSync(join(FORMATS, "models.json"), "utf8"),
).models;

/** The file or the folder that names a model within its folder. */
export const pathIn = (folder: string, name: string): string =>
  !name.startsWith("gguf") ? folder : join(folder, name === "gguf-qwen3" ? "model-00001-of-00003.gguf" : "model.gguf");

/** Copies a model to `folder` with a tokenizer next to it; returns what names it. */
export function copyFormat(folder: string, name: string): string {
  cpSync(join(FORMATS, name), folder, { recursive: true });
  writeByteTokenizer(folder);
  return pathIn(folder, name);
}

/** A tensor's values as f32. */
export function valuesOf(path: string, spec: ModelSpec, name: string): Float32Array<ArrayBuffer> {
  using files = openBaseModel(path, spec);
  const values = new Float32Array(sizeOf(files.tensor(name).shape));
  files.read(name, new Uint8Array(values.buffer), 0, "f32");
  return values;
}

/** Writes the model at `path` once more to `folder`: with its dequantised values, and a tokenizer. */
export function writeDequantised(folder: string, path: string, spec: ModelSpec): void {
  const { config } = readModelConfig(path);
  rmSync(folder, { recursive: true, force: true });
  cpSync(join(FORMATS, "nf4-plain"), folder, { recursive: true });
  writeByteTokenizer(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, quantization_config: null }));
  const tensors = [...tensorShapes(spec)].map(([name, shape]) => ({
    name,
    dtype: "f32" as const,
    shape,
    data: valuesOf(path, spec, name),
  }));
  writeSafetensors(join(folder, "model.safetensors"), tensors);
}

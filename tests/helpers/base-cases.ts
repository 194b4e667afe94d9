// The base models of tests/golden/base, made again from those of tests/golden/peft as make.py there makes them.

import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { toF32 } from "../../src/files/convert.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";

const GOLDEN = join(import.meta.dir, "..", "golden");

export type BaseCase = {
  readonly name: string;
  readonly model: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly head: "other" | "same" | "f32" | "alone" | null;
  readonly ids: readonly number[];
  /** Whether transformers uses the embedding for the head, and its mean loss over the row. */
  readonly tied: boolean;
  readonly loss: number;
};

export const BASE_CASES: readonly BaseCase[] = JSON.parse(readFileSync(join(GOLDEN, "base", "cases.json"), "utf8")).cases;

/** f32[tokens, vocabulary] of a case's row. */
export function logitsOf({ name }: BaseCase): Float32Array {
  using file = openSafetensors(join(GOLDEN, "base", "logits.safetensors"));
  return new Float32Array(valuesOf(file, name).buffer);
}

export function writeBaseCase(folder: string, { model, config, head }: BaseCase): void {
  cpSync(join(GOLDEN, "peft", model, "model"), folder, { recursive: true });
  const path = join(folder, "config.json");
  const keys = Object.entries({ ...JSON.parse(readFileSync(path, "utf8")), ...config }).filter(([, value]) => value !== null);
  writeFileSync(path, JSON.stringify(Object.fromEntries(keys)));
  if (head !== null) writeHead(folder, head);
}

const [EMBEDDING, HEAD] = ["model.embed_tokens.weight", "lm_head.weight"];

/**
 * Gives a bf16 model in one file a head: the embedding, in f32 too, or with its rows seven further down; "alone": instead of
 * the embedding.
 */
export function writeHead(folder: string, head: NonNullable<BaseCase["head"]>): void {
  const path = join(folder, "model.safetensors");
  const tensors = bf16TensorsIn(path);
  const { shape, data } = tensors.find(({ name }) => name === EMBEDDING)!;
  const from = data as Uint16Array;
  const to = new Uint16Array(from.length);
  const down = head === "other" || head === "alone" ? 7 * shape[1]! : 0;
  for (const [i, value] of from.entries()) to[(i + down) % to.length] = value;
  const own: TensorData =
    head === "f32"
      ? { name: HEAD!, dtype: "f32", shape, data: toF32(new Uint8Array(to.buffer), "bf16") }
      : { name: HEAD!, dtype: "bf16", shape, data: to };
  const others = head === "alone" ? tensors.filter(({ name }) => name !== EMBEDDING) : tensors;
  writeSafetensors(path, [...others, own]);
}

/** All tensors of a file, which are bf16. */
export function bf16TensorsIn(path: string): TensorData[] {
  using file = openSafetensors(path);
  return [...file.tensors].map(([name, { shape }]) => {
    return { name, dtype: "bf16", shape, data: new Uint16Array(valuesOf(file, name).buffer) };
  });
}

function valuesOf(file: ReturnType<typeof openSafetensors>, name: string): Uint8Array<ArrayBuffer> {
  const raw = new Uint8Array(file.tensors.get(name)!.bytes);
  file.readInto(name, raw);
  return raw;
}

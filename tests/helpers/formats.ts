// The base models of tests/golden/formats, as others quantise them, with what they stand for, and what devices make of them.

import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { Arena } from "../../src/device/arena.ts";
import type { Device } from "../../src/device/device.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { weightsOf } from "../../src/engine/weights/weight-source.ts";
import { linearsIn } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../../src/files/config.ts";
import { toBf16 } from "../../src/files/convert.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";
import { dequantise } from "../../src/ops/packed.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { evaluate } from "../../src/session/evaluation/evaluate.ts";
import { admit } from "../../src/session/state/slot.ts";
import { goldenRecipe, loadGolden } from "./golden.ts";
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

/** The loss of a case's row on the model at `path`, with an adapter that is not trained yet. */
export async function lossOf(path: string, { ids }: FormatCase, kind: "cpu" | "cuda", stages = 1): Promise<number> {
  const device = { ...chooseDevice(kind, "auto"), host: "" };
  const { spec, exact } = readModelFacts(path, readModelSpec(path));
  const recipe = goldenRecipe(loadGolden("qwen2"));
  const adapter = { ...recipe.adapters[0]!, initialAdapter: null, targets: linearsIn(spec) };
  const model = { path, precision: "auto" as const };
  const all = { ...recipe, model, run: { ...recipe.run, stages }, adapters: [adapter] };
  const row = { length: ids.length, longest: ids.length, targets: ids.length - 1 };
  const devices = range(stages).map(() => device);
  const plan = makePlan(all, spec, [{ train: [row], eval: [] }], devices, { exact });
  await using bus = await openLocalStages(setupsOf(plan, { folder: path }));
  await admit(bus, 0, plan.adapters[0]!);
  const sample = { ids: Int32Array.from(ids), mask: Uint8Array.from(ids, () => 1) };
  const work = { slot: 0, samples: [sample], batchSize: 1, objective: { name: "sft" }, references: null } as const;
  return (await evaluate(bus, plan, work).result).loss;
}

/** The linears that `device` holds in nf4 as the files have them: what they stand for there, and by the files. */
export async function keepsNf4(device: Device, path: string) {
  const spec = readModelSpec(path);
  using source = weightsOf({ folder: path }, spec, device);
  const kept: { readonly tensor: string; readonly got: ArrayBufferView; readonly want: ArrayBufferView }[] = [];
  for (const [tensor, shape] of tensorShapes(spec)) {
    if (!tensor.endsWith("_proj.weight")) continue;
    const layout = { format: "nf4", shape: shape as [number, number], firstRow: [0, shape[0]!] } as const;
    using arena = new Arena(device, partsOf(layout).bytes + 4 * sizeOf(shape) + 4096, "a test");
    const weight: PackedWeight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    const out = arena.tensor(device.compute, ...shape);
    if ((await source.fill(tensor, out, { packed: { weight, linear: 0 } })) !== true) continue;
    dequantise(device, { weight, out });
    const bytes = (await device.read(out)).buffer;
    const values = valuesOf(path, spec, tensor);
    const isF32 = device.compute === "f32";
    kept.push({ tensor, got: isF32 ? new Float32Array(bytes) : new Uint16Array(bytes), want: isF32 ? values : toBf16(values) });
  }
  return kept;
}

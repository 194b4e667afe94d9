// Tiny models of gpt-oss with their experts in mxfp4, and stages whose weights come from files, held as a precision says.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type HeldWeights, heldWeights, type Precision } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import { Stage } from "../../src/engine/stage.ts";
import { weightsOf } from "../../src/engine/weight-source.ts";
import type { FillTensor } from "../../src/engine/weights.ts";
import { specOf } from "../../src/families/registry.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, writeAdapter } from "./factors.ts";
import { inExperts, randomFactors, randomTokens, tinySizes, wholeModel } from "./tiny.ts";

async function openTiny(
  device: Device,
  spec: ModelSpec,
  adapters: readonly PoolAdapter[],
  fill: FillTensor,
  held: HeldWeights,
): Promise<Stage> {
  const rows = Math.max(256, adapters.length * device.rowTile);
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, rows, targets: rows, ...held });
  const config = { spec, layerRange: wholeModel(spec), sizes };
  const stage = await Stage.open(device, config, fill, { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) {
    await stage.admit(slot, { ...adapter, seed: slot, init: "default" });
    await writeAdapter(stage, slot, await randomFactors(stage, slot, 5 + slot));
  }
  return stage;
}

const CONFIG = {
  architectures: ["GptOssForCausalLM"],
  ...{ hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 },
  ...{ head_dim: 8, vocab_size: 40, num_local_experts: 8, num_experts_per_tok: 2, max_position_embeddings: 64 },
  rope_parameters: { rope_type: "default", rope_theta: 500 },
};
export const MXFP4_CONFIG = {
  ...CONFIG,
  quantization_config: { quant_method: "mxfp4", modules_to_not_convert: ["self_attn"] },
};
const VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

export function writeModel(root: string, name: string, config: object, tensors: readonly TensorData[]): string {
  const folder = join(root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  writeSafetensors(join(folder, "model.safetensors"), tensors);
  return folder;
}

/** The same model twice: with codes, and with what they stand for, each expert [in, out]. */
export function writeModels(
  root: string,
  at: string,
): { readonly packed: string; readonly plain: string; readonly tensors: readonly TensorData[] } {
  const spec = specOf(MXFP4_CONFIG, "config.json");
  const rng = new Rng(5);
  const [packed, plain]: [TensorData[], TensorData[]] = [[], []];
  for (const [name, shape] of tensorShapes(spec)) {
    if (!/experts\.(gate_up|down)_proj$/.test(name)) {
      const scale = name.includes("norm") ? 0.2 : 0.4;
      const data = Float32Array.from({ length: sizeOf(shape) }, () => (name.includes("norm") ? 1 : 0) + scale * rng.normal());
      for (const to of [packed, plain]) to.push({ name, dtype: "f32", shape, data });
      continue;
    }
    const [experts, out, width] = shape as [number, number, number];
    const codes = Uint8Array.from({ length: sizeOf(shape) / 2 }, () => rng.below(256));
    const scales = Uint8Array.from({ length: sizeOf(shape) / 32 }, () => 122 + rng.below(4));
    packed.push({ name: `${name}_blocks`, dtype: "u8", shape: [experts, out, width / 32, 16], data: codes });
    packed.push({ name: `${name}_scales`, dtype: "u8", shape: [experts, out, width / 32], data: scales });
    const data = new Float32Array(sizeOf(shape));
    for (const e of range(experts))
      for (const o of range(out))
        for (const i of range(width)) {
          const at = (e * out + o) * width + i;
          const code = i % 2 === 0 ? codes[at >> 1]! & 15 : codes[at >> 1]! >> 4;
          data[(e * width + i) * out + o] = VALUES[code]! * 2 ** (scales[at >> 5]! - 127);
        }
    plain.push({ name, dtype: "f32", shape: [experts, width, out], data });
  }
  const folders = {
    packed: writeModel(root, `${at}-packed`, MXFP4_CONFIG, packed),
    plain: writeModel(root, `${at}-plain`, CONFIG, plain),
  };
  return { ...folders, tensors: packed };
}
export const factsOf = (folder: string) => readModelFacts(folder, readModelSpec(folder));

/** Of adapters in experts and in attention, factor by factor, after one pass. */
export async function gradientsOf(device: Device, folder: string, precision: Precision): Promise<readonly number[][]> {
  const { spec, exact } = factsOf(folder);
  const held = heldWeights(precision, device, exact);
  using source = weightsOf({ folder }, spec, device);
  const adapters = inExperts(spec);
  using stage = await openTiny(device, spec, adapters, source.fill, held);
  const rng = new Rng(8);
  const samples = [randomTokens(rng, spec.vocab, 21), randomTokens(rng, spec.vocab, 9)];
  const rows = { samples, seed: 4, step: 3, dropout: 0, firstRow: 0, weight: 0.05 };
  const batch = pack(
    adapters.map((_, adapter) => ({ ...rows, adapter })),
    adapters.length,
    device.rowTile,
  );
  await stage.forward(0, batch);
  await stage.backward(0);
  const all = await Promise.all(
    adapters.map(async (_, slot) => factorsOf(stage, slot, (await stage.pool.read(slot, "grads")) as Float32Array)),
  );
  return all.flat().map(({ values }) => [...values]);
}

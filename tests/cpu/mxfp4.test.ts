// Experts in mxfp4, as gpt-oss was released: kept as they are on the device, and the same numbers as files with their values.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { heldWeights } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { weightsOf } from "../../src/engine/weight-source.ts";
import { specOf } from "../../src/families/registry.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { pack } from "../../src/schedule/pack.ts";
import { exportModel } from "../../src/session/export-model.ts";
import { factorsOf } from "../helpers/factors.ts";
import { openTiny } from "../helpers/mxfp4.ts";
import { refused } from "../helpers/refused.ts";
import { inExperts, randomTokens } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-mxfp4-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const CONFIG = {
  architectures: ["GptOssForCausalLM"],
  ...{ hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 },
  ...{ head_dim: 8, vocab_size: 40, num_local_experts: 4, num_experts_per_tok: 2, max_position_embeddings: 64 },
  rope_parameters: { rope_type: "default", rope_theta: 500 },
};
const QUANTISED = { ...CONFIG, quantization_config: { quant_method: "mxfp4", modules_to_not_convert: ["self_attn"] } };
const VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

function write(name: string, config: object, tensors: readonly TensorData[]): string {
  const folder = join(root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  writeSafetensors(join(folder, "model.safetensors"), tensors);
  return folder;
}

/** The same model twice: with codes, and with what they stand for, each expert [in, out]. */
function models(at: string): { readonly packed: string; readonly plain: string; readonly tensors: readonly TensorData[] } {
  const spec = specOf(QUANTISED, "config.json");
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
  const folders = { packed: write(`${at}-packed`, QUANTISED, packed), plain: write(`${at}-plain`, CONFIG, plain) };
  return { ...folders, tensors: packed };
}
const folders = models("model");

const factsOf = (folder: string) => readModelFacts(folder, readModelSpec(folder));

async function gradients(folder: string, isKept: boolean): Promise<readonly number[][]> {
  const { spec, exact } = factsOf(folder);
  const device = new CpuDevice(2);
  const held = heldWeights(isKept ? "auto" : "fp32", "f32", exact);
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

test("what is kept in mxfp4, what is dequantised and files with the values train alike, bit for bit", async () => {
  const [kept, opened, plain] = [
    await gradients(folders.packed, true),
    await gradients(folders.packed, false),
    await gradients(folders.plain, false),
  ];
  expect(kept.length).toBeGreaterThan(20);
  expect(kept.every((values) => values.some((value) => value !== 0))).toBe(true);
  expect(opened).toEqual(plain as number[][]);
  expect(kept).toEqual(plain as number[][]);
});

test("a model says that its experts are mxfp4, and keeps them by default and in 4 or 8 bits", () => {
  const { spec, exact, notices } = factsOf(folders.packed);
  expect([spec, factsOf(folders.plain).spec].map(({ experts }) => experts!.files)).toEqual(["rows", "columns"]);
  expect(notices.join("\n")).toContain("its experts are MXFP4");
  for (const precision of ["auto", "int8", "nf4"] as const)
    expect(heldWeights(precision, "f32", exact).expertFormat).toBe("mxfp4");
  for (const precision of ["bf16", "fp32"] as const) expect(heldWeights(precision, "f32", exact).expertFormat).toBeUndefined();
  expect(heldWeights("auto", "bf16", exact).expertFormat).toBeUndefined(); // not on a GPU yet
});

test("codes without their scales are refused by name", () => {
  const { spec } = factsOf(folders.packed);
  const name = "model.layers.0.mlp.experts.down_proj";
  const folder = write(
    "broken",
    QUANTISED,
    models("again").tensors.filter((tensor) => tensor.name !== `${name}_scales`),
  );
  expect(refused(() => readModelFacts(folder, spec)).message).toContain(`${name} has codes without scales`);
});

test("an adapter is not merged into experts in mxfp4, which would lie otherwise", () => {
  const [adapter, output] = [join(root, "adapter"), join(root, "merged")];
  mkdirSync(adapter);
  const at = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  writeSafetensors(join(adapter, "adapter_model.safetensors"), [
    { name: `${at}A.weight`, dtype: "f32", shape: [1, 32], data: new Float32Array(32) },
    { name: `${at}B.weight`, dtype: "f32", shape: [32, 1], data: new Float32Array(32) },
  ]);
  const config = { peft_type: "LORA", r: 1, lora_alpha: 1, target_modules: ["model.layers.0.self_attn.q_proj"] };
  writeFileSync(join(adapter, "adapter_config.json"), JSON.stringify(config));
  const merging = { base: folders.packed, output, dtype: "fp32", mostBytes: 1 << 30, print: () => undefined } as const;
  expect(refused(() => exportModel(adapter, merging)).message).toContain("has its experts in mxfp4");
});

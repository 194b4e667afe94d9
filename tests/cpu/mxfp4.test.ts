// Experts in mxfp4, as gpt-oss was released: kept as they are on the device, and the same numbers as files with their values.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { heldWeights } from "../../src/base/precision.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";
import { exportModel } from "../../src/session/export-model.ts";
import { factsOf, gradientsOf, MXFP4_CONFIG, writeModel, writeModels } from "../helpers/mxfp4.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-mxfp4-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const folders = writeModels(root, "model");

test("what is kept in mxfp4, what is dequantised and files with the values train alike, bit for bit", async () => {
  const [kept, opened, plain] = [
    await gradientsOf(new CpuDevice(2), folders.packed, "auto"),
    await gradientsOf(new CpuDevice(2), folders.packed, "fp32"),
    await gradientsOf(new CpuDevice(2), folders.plain, "fp32"),
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
    for (const compute of ["f32", "bf16"] as const)
      expect(heldWeights(precision, { compute }, exact).expertFormat).toBe("mxfp4");
  for (const precision of ["bf16", "fp32"] as const)
    expect(heldWeights(precision, { compute: "f32" }, exact).expertFormat).toBeUndefined();
});

test("codes without their scales are refused by name", () => {
  const { spec } = factsOf(folders.packed);
  const name = "model.layers.0.mlp.experts.down_proj";
  const folder = writeModel(
    root,
    "broken",
    MXFP4_CONFIG,
    writeModels(root, "again").tensors.filter((tensor) => tensor.name !== `${name}_scales`),
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

// Adapters in experts in PEFT's files: by the names that a model's files call for, and read back as they were.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { isOfExperts, type Linear, linearsOfModel } from "../../src/families/linears.ts";
import { type PeftAdapter, readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, writeSafetensors } from "../../src/files/safetensors.ts";
import type { PlacedAdapter } from "../../src/methods/adapter.ts";
import { factorsIn } from "../../src/methods/layout.ts";
import { placed, rankAt, samePlaces, scaleAt, sharingOf } from "../../src/methods/placement.ts";
import { factorShape } from "../../src/methods/registry.ts";
import { refused } from "../helpers/refused.ts";
import { inExperts, sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-peft-experts-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let folders = 0;

const spec = (name: string): ModelSpec => sparseFamilies[name]!;

function factorsOf(of: ModelSpec, adapter: PlacedAdapter) {
  const rng = new Rng(7);
  return factorsIn({ from: 0, to: of.layers }, adapter.targets, "lora", adapter.places).map((at) => {
    const shape = factorShape(of, at.linear, at.factor, rankAt(adapter, at.layer, at.linear), at.layer, sharingOf(adapter));
    return { ...at, values: Float32Array.from({ length: sizeOf(shape) }, () => rng.normal()) };
  });
}

function write(of: ModelSpec, adapter: PlacedAdapter, rslora = false) {
  const folder = join(root, `${folders++}`);
  mkdirSync(folder);
  const factors = factorsOf(of, adapter);
  const { rank, targets, places } = adapter;
  const whole: PeftAdapter = {
    rank,
    targets,
    alpha: 8,
    dropout: 0.1,
    rslora,
    baseModel: "m",
    ...(places ? { places } : {}),
  };
  writePeftAdapter(folder, of, whole, factors);
  using file = openSafetensors(join(folder, "adapter_model.safetensors"));
  const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
  return { folder, factors, config, shapes: new Map([...file.tensors].map(([name, { shape }]) => [name, shape])) };
}

describe.each(["mixtral", "gptOss", "qwen3moe"])("%s", (name) => {
  test.each([0, 1, 2, 3])("adapter %i is read back as it was", (i) => {
    const adapter = inExperts(spec(name))[i]!;
    const { folder, factors, config } = write(spec(name), adapter);
    expect(config.lora_dropout).toBe(0); // PEFT refuses others
    const saved = readPeftAdapter(folder, spec(name));
    expect(samePlaces(saved, adapter, spec(name).layers)).toBe(true);
    expect(sharingOf(saved)).toBe(sharingOf(adapter));
    for (const { layer, linear, factor, values } of factors)
      expect([...saved.tensor(layer, linear, factor)]).toEqual([...values]);
  });
});

const all = (of: ModelSpec, sharing: "shared-outer" | "per-expert") => {
  const own = linearsOfModel(of).filter(isOfExperts);
  const has = (layer: number) => of.experts!.layers[layer]!;
  return placed(
    of.layers,
    (layer, linear) => (linear === "q_proj" || (own.includes(linear) && has(layer)) ? { rank: 2, scale: 4 } : null),
    sharing,
  );
};
const AT = "base_model.model.model.layers.0";

test("a model whose files have each expert apart has names for each, repeated where experts share a factor", () => {
  const { shapes, config, folder } = write(spec("qwen3moe"), all(spec("qwen3moe"), "shared-outer"));
  for (const expert of range(8)) {
    expect(shapes.get(`${AT}.mlp.experts.${expert}.gate_proj.lora_A.weight`)).toEqual([2, 24]);
    expect(shapes.get(`${AT}.mlp.experts.${expert}.up_proj.lora_B.weight`)).toEqual([16, 2]);
    expect(shapes.get(`${AT}.mlp.experts.${expert}.down_proj.lora_A.weight`)).toEqual([2, 16]);
  }
  expect(config.target_parameters).toBeNull();
  using file = openSafetensors(join(folder, "adapter_model.safetensors"));
  const read = (tensor: string) => {
    const raw = new Uint8Array(file.tensors.get(`${AT}.mlp.experts.${tensor}.weight`)!.bytes);
    file.readInto(`${AT}.mlp.experts.${tensor}.weight`, raw);
    return Buffer.from(raw).toString("hex");
  };
  for (const linear of ["gate_proj.lora_A", "up_proj.lora_A", "down_proj.lora_B"])
    expect(read(`7.${linear}`)).toBe(read(`0.${linear}`));
  for (const linear of ["gate_proj.lora_B", "up_proj.lora_B", "down_proj.lora_A"])
    expect(read(`7.${linear}`)).not.toBe(read(`0.${linear}`));
});

test("names of experts are those of Mixtral's files, and no dense linear of the same name is meant", () => {
  const mixtral = write(spec("mixtral"), all(spec("mixtral"), "per-expert"));
  expect(mixtral.shapes.get(`${AT}.block_sparse_moe.experts.3.w2.lora_B.weight`)).toEqual([24, 2]);
  expect(mixtral.config.target_modules.toSorted()).toEqual(["q_proj", "w1", "w2", "w3"]);
  // Layer 1 of this model is dense, and its gate_proj is no target.
  const { config } = write(spec("qwen3moe"), all(spec("qwen3moe"), "per-expert"));
  expect(config.target_modules).toContain("model.layers.0.mlp.experts.5.gate_proj");
  expect(config.target_modules).not.toContain("gate_proj");
});

test("experts that have one rank and scale have the config's own, which alone reach them in PEFT, and never rsLoRA", () => {
  const of = spec("mixtral");
  const experts = linearsOfModel(of).filter(isOfExperts);
  for (const seed of range(40)) {
    const rng = new Rng(seed, 11);
    const value = () => ({ rank: 1 + rng.below(5), scale: [0.5, 2, 3.25][rng.below(3)]! });
    const [own, others] = [value(), new Map(["q_proj", "v_proj", "o_proj"].map((linear) => [linear, value()]))];
    const isEach = rng.below(2) === 0;
    const adapter = placed(
      of.layers,
      (layer, linear) => {
        if (experts.includes(linear)) return own;
        return others.has(linear) ? (isEach && layer === 1 ? value() : others.get(linear)!) : null;
      },
      "per-expert",
    );
    const rslora = rng.below(2) === 0;
    const { config, folder } = write(of, adapter, rslora);
    const named = (patterns: Readonly<Record<string, number>>, path: string) =>
      Object.entries(patterns).find(([key]) => new RegExp(`^(.*\\.)?(${key})$`).test(path))?.[1];
    expect(config.use_rslora, `seed ${seed}`).toBe(false);
    expect(config.r, `seed ${seed}`).toBe(own.rank);
    expect(config.lora_alpha / config.r).toBeCloseTo(own.scale, 9);
    for (const linear of ["w1", "w2", "w3"])
      for (const patterns of [config.rank_pattern, config.alpha_pattern])
        expect(named(patterns, `model.layers.0.block_sparse_moe.experts.0.${linear}`)).toBeUndefined();
    for (const layer of range(of.layers))
      for (const linear of others.keys()) {
        const path = `model.layers.${layer}.self_attn.${linear}`;
        const rank = named(config.rank_pattern, path) ?? config.r;
        expect(rank, `seed ${seed}`).toBe(rankAt(adapter, layer, linear as Linear));
        const alpha = named(config.alpha_pattern, path) ?? config.lora_alpha;
        expect(alpha / rank).toBeCloseTo(scaleAt(adapter, layer, linear as Linear), 9);
      }
    expect(samePlaces(readPeftAdapter(folder, of), adapter, of.layers)).toBe(true);
  }
});

test("parameters of all experts are wrapped one in the other, and one alone is not", () => {
  const both = write(spec("gptOss"), all(spec("gptOss"), "per-expert"));
  expect(both.shapes.get(`${AT}.mlp.experts.base_layer.lora_A.weight`)).toEqual([16, 24]);
  expect(both.shapes.get(`${AT}.mlp.experts.base_layer.lora_B.weight`)).toEqual([32, 16]);
  expect(both.shapes.get(`${AT}.mlp.experts.lora_A.weight`)).toEqual([16, 16]);
  expect(both.config.target_parameters.toSorted()).toEqual(["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]);
  const one = write(spec("gptOss"), inExperts(spec("gptOss"))[2]!);
  expect(one.config.target_parameters).toEqual(["mlp.experts.down_proj"]);
  expect(one.shapes.has(`${AT}.mlp.experts.base_layer.lora_A.weight`)).toBe(false);
});

test("an adapter of transformers 5's fused parameters is read for a model whose files have each expert apart", () => {
  const of = spec("qwen3moe");
  const [experts, rank] = [8, 2];
  const rng = new Rng(3);
  const random = (size: number) => Float32Array.from({ length: size }, () => rng.normal());
  const folder = join(root, "fused");
  mkdirSync(folder);
  const a = random(rank * experts * 24);
  const b = random(32 * rank * experts);
  const tensors = [0, 2].flatMap((layer) => {
    const at = `base_model.model.model.layers.${layer}.mlp.experts.`;
    return [
      { name: `${at}lora_A.weight`, dtype: "f32" as const, shape: [rank * experts, 24], data: a },
      { name: `${at}lora_B.weight`, dtype: "f32" as const, shape: [32, rank * experts], data: b },
    ];
  });
  writeSafetensors(join(folder, "adapter_model.safetensors"), tensors);
  const config = { peft_type: "LORA", r: rank, lora_alpha: 4, target_modules: [], target_parameters: ["gate_up_proj"] };
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
  const saved = readPeftAdapter(folder, of);
  const [gate, up] = ["mlp.experts.gate_proj", "mlp.experts.up_proj"] as string[] as Linear[];
  expect(saved.targets).toEqual([gate!, up!]);
  expect([...saved.tensor(2, gate!, "A")]).toEqual([...a]);
  const back = saved.tensor(2, up!, "B");
  for (const expert of range(experts))
    for (const row of range(16))
      for (const j of range(rank))
        expect(back[row * rank * experts + expert * rank + j]!).toBe(b[(16 + row) * rank * experts + j * experts + expert]!);
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, target_parameters: ["gate.weight"] }));
  expect(refused(() => readPeftAdapter(folder, of)).message).toContain('target_parameters has "gate.weight"');
});

test("parameters of a model without experts are refused", () => {
  const folder = join(root, "dense");
  mkdirSync(folder);
  writeSafetensors(join(folder, "adapter_model.safetensors"), []);
  const config = { peft_type: "LORA", r: 2, lora_alpha: 4, target_parameters: ["mlp.gate_proj.weight"] };
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(config));
  const { message, hint } = refused(() => readPeftAdapter(folder, tinyFamilies["llama"]!));
  expect(message).toContain('target_parameters has "mlp.gate_proj.weight"');
  expect(hint).toBe("the base model has none");
});

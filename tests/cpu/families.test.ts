// Families of base models against transformers and PEFT (tests/golden/families): training, logits, greedy generation over what
// is kept, PEFT's files in both directions, and merging.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { weightsOf } from "../../src/engine/weights/weight-source.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toBf16 } from "../../src/files/convert.ts";
import { type Merge, shardsOf, verifyMerged, writeShards } from "../../src/files/merge.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { factorsIn } from "../../src/methods/layout.ts";
import { prefill } from "../../src/schedule/decode.ts";
import { FAMILY_GOLDENS, type FamilyGolden, loadFamilyGolden } from "../helpers/family-golden.ts";
import { GREEDY, generated, nextLogits, tinyGenerator } from "../helpers/generation.ts";
import { comparesWithPeft } from "../helpers/peft.ts";

const goldens = FAMILY_GOLDENS.map(loadFamilyGolden);
afterAll(() => {
  for (const golden of goldens) golden[Symbol.dispose]();
});

// PEFT's own fp32 lies up to 3e-7 (losses) and 1.5e-7 (weights) from itself with other micro-batches.
comparesWithPeft("cpu", "fp32", { loss: 1e-5, gradNorm: 1e-4, weights: 1e-4 }, true, goldens);

const specOf = ({ model }: Pick<FamilyGolden, "model">) => readModelFacts(model, readModelSpec(model)).spec;

/** The first adapter of a golden as trained, and all of its factors. */
function savedAll(golden: FamilyGolden) {
  const saved = readPeftAdapter(golden.adapters[0]!.final, specOf(golden));
  const of = factorsIn({ from: 0, to: specOf(golden).layers }, saved.targets, saved.method, saved.places);
  return { saved, factors: of.map((at) => ({ ...at, values: saved.tensor(at.layer, at.linear, at.factor) })) };
}

async function generatorOf(golden: FamilyGolden, folder = golden.model) {
  const spec = specOf({ ...golden, model: folder });
  const device = new CpuDevice(2);
  const { saved, factors } = savedAll(golden);
  const { rank, scale, targets, places } = saved;
  using source = weightsOf({ folder }, spec, device);
  const adapter = { rank, scale, targets, ...(places ? { places } : {}) };
  // Awaited before the files are closed.
  return await tinyGenerator(device, spec, { fill: source.fill, factors: () => factors }, [adapter]);
}

describe.each(goldens.map((golden) => [golden.name, golden] as const))("%s", (_, golden) => {
  test("logits of the base model and of the adapter are transformers'", async () => {
    using generator = await generatorOf(golden);
    for (const [adapter, want] of [
      [-1, golden.logits.base],
      [0, golden.logits.all],
    ] as const) {
      const vocab = want.length / golden.probe.length;
      const size = Math.max(...want.map(Math.abs));
      for (const last of range(golden.probe.length)) {
        const ids = golden.probe.slice(0, last + 1);
        const [got] = await nextLogits(generator, prefill([{ adapter, ids, firstRow: 0 }], 1, generator.tile));
        const row = want.subarray(last * vocab, (last + 1) * vocab);
        for (const [i, value] of row.entries()) expect(Math.abs(got![i]! - value) / size).toBeLessThan(1e-5);
      }
    }
  });

  test("a merged model has the adapter's logits, and keeps the model's other parts and names", async () => {
    const spec = specOf(golden);
    const merged = join(golden.model, "..", "merged");
    mkdirSync(merged);
    cpSync(join(golden.model, "config.json"), join(merged, "config.json"));
    using base = openBaseModel(golden.model, spec);
    const merge: Merge = { spec, base, adapter: savedAll(golden).saved, dtype: "f32" };
    const shards = shardsOf(merge, 1e9);
    writeShards([{ folder: merged, shard: shards[0]!, merge }]);
    verifyMerged(merged, shards, merge);
    using before = openSafetensors(join(golden.model, "model.safetensors"));
    using after = openSafetensors(join(merged, "model.safetensors"));
    expect([...after.tensors.keys()].sort()).toEqual([...before.tensors.keys()].sort());
    using generator = await generatorOf(golden, merged);
    const [got] = await nextLogits(generator, prefill([{ adapter: -1, ids: golden.probe, firstRow: 0 }], 1, generator.tile));
    const want = golden.logits.all.subarray(-got!.length);
    for (const [i, value] of want.entries()) expect(Math.abs(got![i]! - value)).toBeLessThan(1e-3);
    expect(golden.logits.base.subarray(-got!.length).some((value, i) => Math.abs(value - want[i]!) > 0.1)).toBe(true);
  });

  test("greedy generation is transformers', token for token", async () => {
    using generator = await generatorOf(golden);
    const wanted = { adapter: 0, prompt: golden.prompt, limit: golden.greedy.length, seed: 1 };
    expect(await generated(generator, [wanted], GREEDY)).toEqual([[...golden.greedy]]);
  });

  test("an adapter is written with PEFT's names, for the same modules", () => {
    const spec = specOf(golden);
    const { saved, factors } = savedAll(golden);
    const folder = join(golden.model, "..", "written");
    mkdirSync(folder, { recursive: true });
    const { tensor: _tensor, scale: _scale, ...own } = saved;
    writePeftAdapter(folder, spec, own, factors);
    using theirs = openSafetensors(join(golden.adapters[0]!.final, "adapter_model.safetensors"));
    using ours = openSafetensors(join(folder, "adapter_model.safetensors"));
    expect([...ours.tensors.keys()].sort()).toEqual([...theirs.tensors.keys()].sort());
    const configOf = (of: string) => JSON.parse(readFileSync(join(of, "adapter_config.json"), "utf8"));
    const { target_modules: by, target_parameters: parameters } = configOf(folder);
    expect((parameters ?? []).toSorted()).toEqual((configOf(golden.adapters[0]!.final).target_parameters ?? []).toSorted());
    const modules = [...ours.tensors.keys()].map((name) =>
      name.replace(/^base_model\.model\./, "").replace(/\.lora_[AB]\.weight$/, ""),
    );
    const isTarget = (path: string) =>
      typeof by === "string"
        ? new RegExp(`^(?:${by})$`).test(path)
        : by.some((name: string) => `.${path}`.endsWith(`.${name}`));
    expect(modules.filter((path) => !isTarget(path) && !/\.experts\b/.test(path))).toEqual([]);
    const others = ["model.visual.blocks.0.mlp.gate_proj", "model.vision_tower.layers.0.attention.q_proj"];
    if (spec.tower !== "model") expect(others.filter(isTarget)).toEqual([]);
    expect(readPeftAdapter(folder, spec).targets).toEqual(saved.targets);
  });
});

/** The tensors of a golden's model. */
function tensorsOf({ model }: FamilyGolden): TensorData[] {
  using file = openSafetensors(join(model, "model.safetensors"));
  return [...file.tensors].map(([name, { shape, bytes }]) => {
    const data = new Float32Array(bytes / 4);
    file.readInto(name, new Uint8Array(data.buffer));
    return { name, dtype: "f32", shape, data };
  });
}

/** Expects the same logits of a model whose experts lie otherwise in its files. */
async function expectSameModel(
  golden: FamilyGolden,
  tensors: readonly TensorData[],
  [files, other]: readonly [string, string],
) {
  const folder = join(golden.model, "..", other);
  mkdirSync(folder);
  cpSync(join(golden.model, "config.json"), join(folder, "config.json"));
  writeSafetensors(join(folder, "model.safetensors"), tensors);
  expect(specOf(golden).experts!.files).toBe(files as "rows");
  expect(specOf({ model: folder }).experts!.files).toBe(other as "rows");
  const logits = await Promise.all(
    [folder, golden.model].map(async (model) => {
      using generator = await generatorOf(golden, model);
      return (await nextLogits(generator, prefill([{ adapter: -1, ids: golden.probe, firstRow: 0 }], 1, generator.tile)))[0]!;
    }),
  );
  expect([...logits[0]!]).toEqual([...logits[1]!]);
}

/** By expert; its gate before its up. */
const placeOf = (name: string): number => 2 * Number(/experts\.(\d+)/.exec(name)![1]) + (name.includes("up_proj") ? 1 : 0);
const flat = (tensors: readonly TensorData[]): Float32Array =>
  Float32Array.from(tensors.flatMap(({ data }) => [...(data as Float32Array)]));

test("experts that lie turned in the files, as Qwen3-VL's were released, are the same", async () => {
  const golden = goldens.find(({ name }) => name === "qwen3_vl_moe")!;
  const tensors = tensorsOf(golden).map((tensor) => {
    if (!/experts/.test(tensor.name)) return tensor;
    const [experts, rows, columns] = tensor.shape as [number, number, number];
    const values = tensor.data as Float32Array;
    const data = values.map((_, i) => {
      const [e, at] = [Math.floor(i / (rows * columns)), i % (rows * columns)];
      return values[e * rows * columns + (at % rows) * columns + Math.floor(at / rows)]!;
    });
    return { ...tensor, shape: [experts, columns, rows], data };
  });
  await expectSameModel(golden, tensors, ["rows", "columns"]);
});

test("what a model has in f32 next to weights in bf16 stays so when it is merged into bf16", () => {
  const golden = goldens.find(({ name }) => name === "nemotron_h")!;
  const spec = specOf(golden);
  const [base, merged] = ["mixed", "merged-mixed"].map((name) => join(golden.model, "..", name));
  for (const folder of [base!, merged!]) {
    mkdirSync(folder);
    cpSync(join(golden.model, "config.json"), join(folder, "config.json"));
  }
  const isWide = (name: string) => /A_log|\.D$|dt_bias|correction_bias|gate\.weight/.test(name);
  const tensors = tensorsOf(golden).map((tensor): TensorData => {
    if (isWide(tensor.name)) return tensor;
    return { ...tensor, dtype: "bf16", data: toBf16(tensor.data as Float32Array) };
  });
  writeSafetensors(join(base!, "model.safetensors"), tensors);
  using files = openBaseModel(base!, spec);
  const merge: Merge = { spec, base: files, adapter: savedAll(golden).saved, dtype: "bf16" };
  const shards = shardsOf(merge, 1e9);
  writeShards([{ folder: merged!, shard: shards[0]!, merge }]);
  verifyMerged(merged!, shards, merge);
  using after = openSafetensors(join(merged!, "model.safetensors"));
  for (const { name, dtype, data } of tensors) {
    expect([name, after.tensors.get(name)!.dtype]).toEqual([name, dtype]);
    if (dtype !== "f32") continue;
    const found = new Uint8Array(data.byteLength);
    after.readInto(name, found);
    expect(found).toEqual(new Uint8Array(data.buffer as ArrayBuffer));
  }
});

test("experts that lie in one tensor, as Qwen 3.5's were released, are the same", async () => {
  const golden = goldens.find(({ name }) => name === "qwen3_5_moe")!;
  const [apart, others] = [true, false].map((of) => tensorsOf(golden).filter(({ name }) => /experts\.\d/.test(name) === of));
  const joined = Map.groupBy(apart!, ({ name }) =>
    name.replace(/\.\d+\.(gate|up)_proj.weight$/, ".gate_up_proj").replace(/\.\d+\.down_proj.weight$/, ".down_proj"),
  );
  const tensors = [...joined].map(([name, all]): TensorData => {
    const rows = all.toSorted((a, b) => placeOf(a.name) - placeOf(b.name)); // gate before up
    const { shape } = rows[0]!;
    const experts = rows.length / (name.endsWith("gate_up_proj") ? 2 : 1);
    return { name, dtype: "f32", shape: [experts, (shape[0]! * rows.length) / experts, shape[1]!], data: flat(rows) };
  });
  await expectSameModel(golden, [...others!, ...tensors], ["each", "rows"]);
});

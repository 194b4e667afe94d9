// Quantised base models that cannot be read are refused by name, in one line, before a weight is read; damage never crashes.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { openSafetensors, type TensorEntry } from "../../src/files/safetensors.ts";
import { copyFormat, valuesOf } from "../helpers/formats.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-refused-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let made = 0;
/** A copy of a model, by the path that names it. */
const copy = (name: string): string => copyFormat(join(root, `${made++}`), name);

/** What a run reads before it plans. */
const check = (path: string) => readModelFacts(path, readModelSpec(path));

const groups = (weights: object) => ({ config_groups: { group_0: { weights } } });
const channel = { num_bits: 8, type: "float", strategy: "channel" };
const rows = { quant_method: "compressed-tensors", format: "float-quantized", ...groups(channel) };
/** Inputs of some layers are rotated as they come, their weights are stored rotated. */
const rotation = { config_groups: { R4: { type: "hadamard", apply: [{ targets: ["re:.*down_proj$"], location: "input" }] } } };
/** Keys that are written whatever they say. */
const NOTHING = {
  ...{ ignore: ["lm_head"], kv_cache_scheme: null, global_compression_ratio: null, moe_sparsity_config: null },
  ...{ quantization_status: "compressed", sparsity_config: {}, transform_config: {}, version: "0.20.1" },
};

describe("quantization_config", () => {
  const cases: readonly (readonly [object | string, string])[] = [
    [{ quant_method: "gptq", bits: 4 }, 'quant_method is "gptq"'],
    [{ quant_method: "awq" }, 'quant_method is "awq"'],
    [{}, "quant_method is null"],
    ["fp8", 'is "fp8", expected an object'],
    [{ quant_method: "fp8", fmt: "e5m2" }, 'fmt is "e5m2"'],
    [{ quant_method: "fp8", weight_block_size: [128] }, "weight_block_size is [128]"],
    [{ quant_method: "fp8", weight_block_size: [0, 128] }, "weight_block_size is [0,128]"],
    [{ quant_method: "bitsandbytes", load_in_8bit: true }, "LLM.int8"],
    [{ quant_method: "bitsandbytes", load_in_4bit: true, bnb_4bit_quant_type: "fp4" }, 'bnb_4bit_quant_type is "fp4"'],
    [{ quant_method: "compressed-tensors", format: "pack-quantized" }, 'format is "pack-quantized"'],
    [
      {
        quant_method: "compressed-tensors",
        format: "float-quantized",
        ...groups({ num_bits: 4, type: "float", strategy: "tensor" }),
      },
      "group_0.weights is float of 4 bits by tensor",
    ],
    [{ quant_method: "compressed-tensors", format: "float-quantized" }, "config_groups names no weights"],
    // Keys that change what layers compute with the same weights.
    [{ ...rows, transform_config: rotation }, '.transform_config is {"config_groups":{"R4"'],
    [{ ...rows, moe_sparsity_config: { method: "prune" } }, '.moe_sparsity_config is {"method":"prune"}'],
    [{ ...rows, sparsity_config: { format: "sparse-24-bitmask" } }, '.sparsity_config is {"format":"sparse-24-bitmask"}'],
    [{ ...rows, of_a_later_version: { some: 1 } }, '.of_a_later_version is {"some":1}'],
    [{ ...rows, ...groups({ ...channel, symmetric: false }) }, "group_0.weights.symmetric is false"],
    [
      { ...rows, config_groups: { group_0: { weights: channel, format: "pack-quantized" } } },
      'config_groups.group_0.format is "pack-quantized"',
    ],
  ];
  test.each(cases)("%j", (quantization_config, message) => {
    const path = copy("fp8-rows");
    const file = join(path, "config.json");
    reconfigure(path, quantization_config as object);
    const { code, message: found, hint } = refused(() => readModelSpec(path));
    expect([code, found.startsWith(`${file}: quantization_config`)]).toEqual(["model.quantized", true]);
    expect(found).toContain(message);
    expect(hint).toContain("mlora reads FP8 with scales");
  });
});

/** Gives a model another quantization_config. */
function reconfigure(path: string, quantization_config: object): void {
  const file = join(path, "config.json");
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), quantization_config }));
}

test("other words for the same scales are read alike", () => {
  const weights = { num_bits: 8, type: "float", strategy: "block", block_structure: [24, 20] };
  const cases = [
    ["fp8-rows", { quant_method: "fbgemm_fp8" }, ""],
    [
      "fp8-blocks",
      { quant_method: "compressed-tensors", format: "float-quantized", config_groups: { all: { weights } } },
      "_scale",
    ],
    ["fp8-tensor", { quant_method: "fp8", weight_block_size: null }, "_scale"],
    // As compressed-tensors 0.20 writes a config without activations in 8 bits, with all that it says of nothing.
    ["fp8-rows", { ...rows, ...NOTHING, format: "naive-quantized", ...groups({ ...channel, symmetric: true }) }, ""],
    ["fp8-rows", { ...rows, sparsity_config: { format: "dense", sparsity_structure: "unstructured" } }, ""],
    ["nf4-nested", { load_in_4bit: true, bnb_4bit_quant_type: "nf4" }, ""],
  ] as const;
  for (const [name, config, scale] of cases) {
    const [before, path] = [copy(name), copy(name)];
    reconfigure(path, config);
    if (scale)
      changeTensors(path, (t) => {
        for (const [key, tensor] of [...t].filter(([key]) => key.endsWith("_scale_inv"))) {
          t.delete(key);
          t.set(key.replace("_scale_inv", scale), tensor);
        }
      });
    const { spec } = check(path);
    for (const tensor of [Q, "model.layers.0.mlp.down_proj.weight"])
      expect(valuesOf(path, spec, tensor), `${name} ${tensor}`).toEqual(valuesOf(before, spec, tensor));
  }
});

test("the text part of a model with others is read as well, wherever the configuration stands", () => {
  for (const isInner of [false, true]) {
    const [before, path] = [copy("fp8-blocks"), copy("fp8-blocks")];
    const file = join(path, "config.json");
    const { quantization_config, architectures: _, ...text } = JSON.parse(readFileSync(file, "utf8"));
    const inner = { ...text, model_type: "mistral", sliding_window: null, ...(isInner ? { quantization_config } : {}) };
    const outer = { architectures: ["Mistral3ForConditionalGeneration"], model_type: "mistral3", tie_word_embeddings: true };
    writeFileSync(file, JSON.stringify({ ...outer, text_config: inner, ...(isInner ? {} : { quantization_config }) }));
    changeTensors(path, (t) => {
      for (const [key, tensor] of [...t]) {
        t.delete(key);
        t.set(key.replace(/^model\./, "language_model.model."), tensor);
      }
    });
    const { spec } = check(path);
    expect(valuesOf(path, spec, Q)).toEqual(valuesOf(before, check(before).spec, Q));
  }
});

type Tensors = Map<string, Pick<TensorEntry, "type" | "shape"> & { readonly data: Uint8Array }>;

/** Changes the tensors of a model's file, whatever their types. */
function changeTensors(path: string, change: (tensors: Tensors) => void): void {
  const file = join(path, "model.safetensors");
  const tensors: Tensors = new Map();
  {
    using open = openSafetensors(file);
    for (const [name, { type, shape, bytes }] of open.tensors) {
      const data = new Uint8Array(bytes);
      open.readInto(name, data);
      tensors.set(name, { type, shape, data });
    }
  }
  change(tensors);
  let at = 0;
  const entries = [...tensors].map(([name, { type, shape, data }]) => {
    at += data.length;
    return [name, { dtype: type, shape, data_offsets: [at - data.length, at] }];
  });
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(file, Buffer.concat([length, header, ...[...tensors.values()].map(({ data }) => data)]));
}

const Q = "model.layers.0.self_attn.q_proj.weight";
const f32 = (...values: number[]) => ({
  type: "F32",
  shape: [values.length],
  data: new Uint8Array(Float32Array.from(values).buffer),
});
const state = (value: unknown) => {
  const data = new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));
  return { type: "U8", shape: [data.length], data };
};
const STATE = `${Q}.quant_state.bitsandbytes__nf4`;

describe("scales and codes that do not fit", () => {
  const cases: readonly (readonly [string, string, (tensors: Tensors) => void, string])[] = [
    ["no scales", "fp8-blocks", (t) => t.delete(`${Q}_scale_inv`), `${Q} is F8_E4M3 without scales`],
    [
      "a grid of another size",
      "fp8-blocks",
      (t) => t.set(`${Q}_scale_inv`, f32(1, 2, 3)),
      "with scales [3], expected [2,2] for blocks of 24 x 20",
    ],
    [
      "scales that are whole numbers",
      "fp8-rows",
      (t) => t.set(`${Q}_scale`, { type: "I32", shape: [1], data: new Uint8Array(4) }),
      "has scales of I32",
    ],
    ["E5M2", "fp8-rows", (t) => t.set(Q, { ...t.get(Q)!, type: "F8_E5M2" }), `${Q} is F8_E5M2, wanted F32, F16 or BF16`],
    ["no quant_state", "nf4-nested", (t) => t.delete(STATE), `${Q} is [512,1], wanted [32,32]`],
    [
      "a quant_state that is no JSON",
      "nf4-nested",
      (t) => t.set(STATE, state("{")),
      `${Q} has a quant_state that is not known`,
    ],
    [
      "another type",
      "nf4-plain",
      (t) => t.set(STATE, state({ quant_type: "fp4", blocksize: 64, shape: [32, 32] })),
      "quant_type",
    ],
    [
      "another shape",
      "nf4-plain",
      (t) => t.set(STATE, state({ quant_type: "nf4", blocksize: 64, shape: [64, 32] })),
      "has 512 bytes of codes, expected 1,024 bytes",
    ],
    [
      "an absurd shape",
      "nf4-plain",
      (t) => t.set(STATE, state({ quant_type: "nf4", blocksize: 64, shape: [2 ** 40, 2 ** 40] })),
      "has 512 bytes of codes",
    ],
    ["no absmax", "nf4-plain", (t) => t.delete(`${Q}.absmax`), `${Q} has no absmax`],
    ["absmax cut short", "nf4-nested", (t) => t.set(`${Q}.absmax`, state("abc")), "has absmax of 3 U8, expected 16 U8"],
    ["no nested map", "nf4-nested", (t) => t.delete(`${Q}.nested_quant_map`), "has no nested_quant_map"],
  ];
  test.each(cases)("%s, %s", (_, name, change, message) => {
    const path = copy(name);
    changeTensors(path, change);
    const error = refused(() => check(path));
    expect([error.code, error.message.startsWith(path)]).toEqual(["model.weights", true]);
    expect(error.message).toContain(message);
  });

  test("a scale that is no number is named when it is read", () => {
    const path = copy("fp8-tensor");
    const nan = { type: "F32", shape: [], data: new Uint8Array(Float32Array.of(Number.NaN).buffer) };
    changeTensors(path, (t) => t.set(`${Q}_scale_inv`, nan));
    const { spec } = check(path);
    expect(refused(() => valuesOf(path, spec, Q)).message).toBe(`${Q}: scale 0 is NaN`);
  });

  test("codes that were packed into a wider type are the same", () => {
    const path = copy("nf4-nested");
    const before = valuesOf(path, check(path).spec, Q);
    changeTensors(path, (t) => t.set(Q, { ...t.get(Q)!, type: "BF16", shape: [256, 1] }));
    const { spec, exact } = check(path);
    expect([exact?.format, valuesOf(path, spec, Q)]).toEqual(["nf4", before]);
  });

  test("other tables than the device's are dequantised, not kept", () => {
    const path = copy("nf4-nested");
    const { spec } = check(path);
    const before = valuesOf(path, spec, Q);
    changeTensors(path, (t) => {
      const map = new Float32Array(t.get(`${Q}.quant_map`)!.data.slice().buffer);
      t.set(`${Q}.quant_map`, f32(...map.map((value) => value * 2)));
    });
    expect(check(path).exact).toEqual({ format: "nf4", others: ["0.qkv"], tables: true });
    expect(valuesOf(path, spec, Q)).toEqual(before.map((value) => value * 2));
  });
});

test("damaged quantised safetensors are refused or read, and never crash", () => {
  const rng = new Rng(23);
  for (const name of ["nf4-nested", "fp8-blocks"]) {
    const path = copy(name);
    const good = readFileSync(join(path, "model.safetensors"));
    const header = Number(good.readBigUInt64LE());
    for (let i = 0; i < 150; i++) {
      const bad = Buffer.from(good);
      const at = 8 + rng.below(rng.below(2) === 0 ? header : good.length - 8);
      for (let n = 0; n <= rng.below(4); n++) bad[Math.min(at + n, bad.length - 1)] = rng.below(256);
      writeFileSync(join(path, "model.safetensors"), bad);
      try {
        const { spec } = check(path);
        valuesOf(path, spec, Q);
      } catch (error) {
        expect(error, `${name}, mutation ${i}`).toBeInstanceOf(RequestError);
      }
    }
  }
});

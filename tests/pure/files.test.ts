// Files in and out: what is read right, what is refused with its place, and that damage never crashes or hangs.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openAppender, writeFileAtomic } from "../../src/base/atomic.ts";
import { MloraError, RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { sizeOf } from "../../src/base/shape.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import { specOf } from "../../src/families/registry.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { claimOutput } from "../../src/files/output.ts";
import { readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, writeSafetensors } from "../../src/files/safetensors.ts";
import { refused } from "../helpers/refused.ts";
import { LINEARS } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-files-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let made = 0;
const fresh = (): string => {
  const folder = join(root, `${made++}`);
  mkdirSync(folder);
  return folder;
};

const llama = {
  architectures: ["LlamaForCausalLM"],
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  vocab_size: 11,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
};
const spec = specOf(llama, "config.json");

/** A whole tiny model on disk. */
function writeModel(folder: string, type: "f32" | "bf16" = "f32"): void {
  writeFileSync(join(folder, "config.json"), JSON.stringify(llama));
  const tensors = [...tensorShapes(spec)].map(([name, shape], i) => {
    const values = new Float32Array(sizeOf(shape)).fill(i + 0.5);
    return { name, dtype: type, shape, data: type === "f32" ? values : toBf16(values) };
  });
  writeSafetensors(join(folder, "model.safetensors"), tensors);
}

describe("config.json", () => {
  test("Llama 3.1's scaling, in the old words and in transformers 5's", () => {
    const scaling = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 32,
    };
    const old = specOf({ ...llama, rope_scaling: scaling }, "c");
    const { rope_theta, ...rest } = llama;
    expect(specOf({ ...rest, rope_parameters: { ...scaling, rope_theta } }, "c")).toEqual(old);
    expect(old.ropes[0]!.theta).toBe(500000);
    expect(old.ropes[0]!.scaling).toEqual({
      kind: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 32,
    });
    expect(specOf({ ...llama, rope_scaling: { type: "linear", factor: 2 } }, "c").ropes[0]!.scaling).toEqual({
      kind: "linear",
      factor: 2,
    });
  });

  test("each family's own ways", () => {
    const of = (name: string, more = {}) => specOf({ ...llama, architectures: [`${name}ForCausalLM`], ...more }, "c");
    expect(of("Mistral", { sliding_window: 7 }).windows).toEqual([7, 7]);
    expect(of("Mistral", { sliding_window: null }).windows).toEqual([null, null]);
    expect([of("Qwen2").qkvBias, of("Qwen2").oBias, of("Qwen2").qkNorm]).toEqual([true, false, false]);
    expect(of("Qwen2", { use_sliding_window: true, sliding_window: 5, max_window_layers: 1 }).windows).toEqual([null, 5]);
    expect(of("Qwen2", { use_sliding_window: false, sliding_window: 5, max_window_layers: 1 }).windows).toEqual([null, null]);
    const types = ["sliding_attention", "full_attention"];
    expect(of("Qwen3", { use_sliding_window: true, sliding_window: 5, layer_types: types }).windows).toEqual([5, null]);
    expect([of("Qwen3").qkNorm, of("Qwen3").headDim, of("Qwen3", { head_dim: 6 }).headDim]).toEqual([true, 128, 6]);
    expect([of("Llama", { attention_bias: true, mlp_bias: true }).oBias, of("Llama").mlpBias]).toEqual([true, false]);
  });

  const bad: readonly (readonly [object, string])[] = [
    [{ architectures: ["GemmaForCausalLM"] }, 'architectures is ["GemmaForCausalLM"]'],
    [{ architectures: undefined }, "architectures is undefined"],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu"'],
    [{ rope_scaling: { rope_type: "dynamic", factor: 4 } }, 'the rope type is "dynamic"'],
    [{ rope_scaling: { rope_type: "llama3" } }, "low_freq_factor is missing"],
    [{ num_attention_heads: 3 }, "hidden_size 16 is not a multiple"],
    [{ num_key_value_heads: 3 }, "num_key_value_heads 3 does not divide"],
    [{ num_hidden_layers: -1 }, "num_hidden_layers is -1"],
    [{ vocab_size: 1e30 }, "vocab_size is 1e+30"],
    [{ rms_norm_eps: "x" }, 'rms_norm_eps is "x"'],
    [{ tie_word_embeddings: 1 }, "tie_word_embeddings is 1"],
  ];
  for (const [change, message] of bad)
    test(`refuses: ${message}`, () => {
      const error = refused(() => specOf({ ...llama, ...change }, "dir/config.json"));
      expect(error.message).toStartWith("dir/config.json: ");
      expect(error.message).toContain(message);
    });

  test("a folder that is not one, or holds no config.json", () => {
    expect(refused(() => readModelSpec(join(root, "absent"))).message).toContain("no such folder");
    expect(refused(() => readModelSpec(fresh())).message).toContain("has no config.json");
    const adapter = fresh();
    writeFileSync(join(adapter, "adapter_config.json"), "{}");
    expect(refused(() => readModelSpec(adapter))).toMatchObject({
      message: `${adapter} is an adapter, expected a base model`,
      hint: expect.stringContaining("--adapter"),
    });
  });
});

describe("safetensors", () => {
  const tensors = [
    { name: "a", dtype: "f32", shape: [2, 3], data: Float32Array.from([1, 2, 3, 4, 5, 6]) },
    { name: "b", dtype: "bf16", shape: [3], data: Uint16Array.from([7, 8, 9]) }, // odd length: the next is not aligned
    { name: "__proto__", dtype: "i32", shape: [], data: Int32Array.from([-5]) },
  ] as const;

  test("reads what it wrote, in parts too", () => {
    const path = join(fresh(), "x.safetensors");
    writeSafetensors(path, tensors, { format: "pt" });
    using file = openSafetensors(path);
    expect([...file.tensors.keys()]).toEqual(["a", "b", "__proto__"]);
    expect(file.metadata).toEqual({ format: "pt" });
    for (const { name, data } of tensors) {
      const bytes = new Uint8Array(data.byteLength);
      file.readInto(name, bytes);
      expect(Buffer.from(bytes).equals(Buffer.from(data.buffer))).toBe(true);
    }
    const part = new Uint8Array(8);
    file.readInto("a", part, 8);
    expect([...new Float32Array(part.buffer)]).toEqual([3, 4]);
  });

  /** A file of our own making. */
  const raw = (header: unknown, data = 0, length?: bigint): string => {
    const path = join(fresh(), "bad.safetensors");
    const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
    const prefix = new DataView(new ArrayBuffer(8));
    prefix.setBigUint64(0, length ?? BigInt(json.length), true);
    writeFileSync(path, Buffer.concat([new Uint8Array(prefix.buffer), json, new Uint8Array(data)]));
    return path;
  };
  const entry = (begin: number, end: number, shape: unknown = [1], dtype = "F32") => ({
    dtype,
    shape,
    data_offsets: [begin, end],
  });
  const bad: readonly (readonly [string, () => string, string])[] = [
    ["an empty file", () => join(writeIn(fresh(), "e", ""), "e"), "has 0 bytes"],
    [
      "a header of 2^60 bytes",
      () => raw({}, 0, 1n << 60n),
      "says that its header has 1152921504606846976 bytes; the file has 10",
    ],
    ["a header that is no JSON", () => raw("{"), "has a header that is no JSON"],
    ["a list for a header", () => raw("[]"), "no JSON object"],
    ["offsets outside the file", () => raw({ a: entry(0, 4) }, 3), "ends at byte"],
    ["a tensor cut short", () => raw({ a: entry(0, 4), b: entry(4, 8) }, 6), "tensor 'b' ends at byte"],
    ["a hole", () => raw({ a: entry(4, 8) }, 8), "begins at byte"],
    ["an overlap", () => raw({ a: entry(0, 4), b: entry(2, 6) }, 6), "tensor 'b' begins at byte"],
    ["bytes left over", () => raw({ a: entry(0, 4) }, 9), "its tensors end at byte"],
    ["a shape that does not fit", () => raw({ a: entry(0, 4, [2]) }, 4), "F32 [2], needs 8 bytes and has 4"],
    ["a negative shape", () => raw({ a: entry(0, 4, [-1]) }, 4), "has the shape [-1]"],
    ["a shape that is no list", () => raw({ a: entry(0, 4, "x") }, 4), 'has the shape "x"'],
    ["offsets of 2^60", () => raw({ a: entry(0, 2 ** 60) }, 4), "has the offsets"],
    ["an unknown type", () => raw({ a: entry(0, 4, [1], "F13") }, 4), 'has the type "F13"'],
    ["a type called as what objects have", () => raw({ a: entry(0, 4, [1], "valueOf") }, 4), 'has the type "valueOf"'],
  ];
  for (const [what, make, message] of bad)
    test(`refuses ${what}`, () => {
      const path = make();
      const error = refused(() => openSafetensors(path));
      expect(error.message).toStartWith(`${path}: `);
      expect(error.message).toContain(message);
    });
  test("refuses what is not there, and a folder", () => {
    expect(refused(() => openSafetensors(join(root, "none"))).message).toContain("no such file");
    expect(refused(() => openSafetensors(root)).message).toStartWith(root);
  });
});

function writeIn(folder: string, name: string, data: string): string {
  writeFileSync(join(folder, name), data);
  return folder;
}

describe("a base model's weights", () => {
  test("one file or shards, with or without the prefix", () => {
    const one = fresh();
    writeModel(one, "bf16");
    const shards = fresh();
    using whole = openSafetensors(join(one, "model.safetensors"));
    const names = [...whole.tensors.keys()];
    const weightMap: Record<string, string> = {};
    for (const [part, group] of [names.slice(0, 5), names.slice(5)].entries()) {
      const shard = `model-0000${part + 1}-of-00002.safetensors`;
      const tensors = group.map((name) => {
        const { dtype, shape, bytes } = whole.tensors.get(name)!;
        const data = new Uint8Array(bytes);
        whole.readInto(name, data);
        const renamed = name.replace(/^model\./, "");
        weightMap[renamed] = shard;
        return { name: renamed, dtype: dtype!, shape, data };
      });
      writeSafetensors(join(shards, shard), tensors);
    }
    writeFileSync(join(shards, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
    using a = openBaseModel(one, spec);
    using b = openBaseModel(shards, spec);
    for (const [name, shape] of tensorShapes(spec)) {
      const [x, y] = [new Uint8Array(sizeOf(shape) * 2), new Uint8Array(sizeOf(shape) * 2)];
      a.read(name, x);
      b.read(name, y);
      expect(Buffer.from(x).equals(Buffer.from(y)), name).toBe(true);
    }
  });

  test("tells all that does not fit before a weight is read", () => {
    const folder = fresh();
    writeModel(folder);
    const other = { ...spec, vocab: 12, qkvBias: true };
    const { message } = refused(() => openBaseModel(folder, other));
    expect(message).toContain("model.embed_tokens.weight is [11,16], wanted [12,16]");
    expect(message).toContain("model.layers.0.self_attn.q_proj.bias is missing");
    expect(message).toContain("and 3 more");
  });

  test("says what lies there instead", () => {
    const folder = writeIn(fresh(), "pytorch_model.bin", "x");
    expect(refused(() => openBaseModel(folder, spec)).message).toContain("but pytorch_model.bin");
  });

  test("an index that leads out of the folder", () => {
    const folder = writeIn(fresh(), "model.safetensors.index.json", JSON.stringify({ weight_map: { a: "../x.safetensors" } }));
    expect(refused(() => openBaseModel(folder, spec)).message).toContain("no file of this folder");
  });
});

const config = { rank: 3, alpha: 6, dropout: 0.1, targets: ["q_proj", "up_proj"], rslora: false } as const;
const adapter = { ...config, method: "lora", baseModel: "base" } as const;
const factorsOf = (targets: readonly Linear[], rank: number) =>
  [0, 1].flatMap((layer) =>
    targets.flatMap((linear) =>
      (["A", "B"] as const).map((factor) => {
        const { in: width, out } = linearShape(spec, linear);
        const rng = new Rng(layer, LINEARS.indexOf(linear));
        return {
          layer,
          linear,
          factor,
          values: Float32Array.from({ length: rank * (factor === "A" ? width : out) }, () => rng.normal()),
        };
      }),
    ),
  );

describe("PEFT adapters", () => {
  test("read back as they were written", () => {
    const folder = fresh();
    const factors = factorsOf(adapter.targets, 3);
    writePeftAdapter(folder, spec, adapter, factors);
    const { tensor, ...config } = readPeftAdapter(folder, spec);
    expect(config).toEqual({ ...adapter, targets: ["q_proj", "up_proj"], scale: 2 });
    for (const { layer, linear, factor, values } of factors) expect(tensor(layer, linear, factor)).toEqual(values);
    expect(readdirSync(folder).toSorted()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
  });

  test("refused when they are of another kind or model", () => {
    const folder = fresh();
    writePeftAdapter(folder, spec, adapter, factorsOf(adapter.targets, 3));
    expect(refused(() => readPeftAdapter(folder, { ...spec, layers: 3 })).message).toContain(
      "model.layers.2.self_attn.q_proj.lora_A.weight is missing",
    );
    expect(refused(() => readPeftAdapter(folder, { ...spec, hidden: 8 })).message).toContain("expected [3,8]");
    const config = JSON.parse(readFileSync(join(folder, "adapter_config.json"), "utf8"));
    for (const [key, value] of [
      ["peft_type", "IA3"],
      ["lora_bias", true],
      ["bias", "all"],
      ["rank_pattern", { q_proj: 0 }],
      ...(["lm_head", -1].map((value) => ["modules_to_save", value]) as [string, unknown][]),
      ...([-1, "1,2"].map((value) => ["trainable_token_indices", value]) as [string, unknown][]),
      ["r", "x"],
    ] as const) {
      writeFileSync(join(folder, "adapter_config.json"), JSON.stringify({ ...config, [key]: value }));
      expect(refused(() => readPeftAdapter(folder, spec)).message).toContain(`${key} is ${JSON.stringify(value)}`);
    }
  });

  test("values that are no numbers are refused", () => {
    const folder = fresh();
    const factors = factorsOf(adapter.targets, 3);
    factors[2]!.values[1] = Number.NaN;
    writePeftAdapter(folder, spec, adapter, factors);
    expect(refused(() => readPeftAdapter(folder, spec)).message).toContain("no finite numbers");
  });
});

test("truncations and mutations of valid files never crash or hang", () => {
  const model = fresh();
  writeModel(model);
  const peft = fresh();
  writePeftAdapter(peft, spec, adapter, factorsOf(adapter.targets, 3));
  const files = [
    [model, "config.json"],
    [model, "model.safetensors"],
    [peft, "adapter_config.json"],
    [peft, "adapter_model.safetensors"],
  ] as const;
  const rng = new Rng(11);
  for (let i = 0; i < 800; i++) {
    const [folder, name] = files[i % files.length]!;
    const good = readFileSync(join(folder, name));
    const head = name.endsWith("json") ? good.length : Math.min(good.length, 3000);
    const at = rng.below(rng.below(2) === 0 ? Math.min(head, 16) : head);
    const bad = rng.below(3) === 0 ? good.subarray(0, at) : Buffer.from(good);
    if (bad.length === good.length)
      for (let n = 0; n <= rng.below(3); n++) bad[Math.min(at + n, bad.length - 1)] = rng.below(256);
    const damaged = join(root, "damaged");
    cpSync(folder, damaged, { recursive: true });
    writeFileSync(join(damaged, name), bad);
    try {
      if (folder === peft) readPeftAdapter(damaged, spec);
      else openBaseModel(damaged, readModelSpec(damaged))[Symbol.dispose]();
    } catch (error) {
      expect(error, `${name}, mutation ${i}`).toBeInstanceOf(RequestError);
    }
  }
});

describe("conversions", () => {
  test("bf16 rounds to nearest even, and keeps NaN and infinities", () => {
    const values = Float32Array.from([1, -2.5, 1.00390625, 1.01171875, 3.4e38, Number.NaN, Number.NEGATIVE_INFINITY, 0, -0]);
    const back = toF32(new Uint8Array(toBf16(values).buffer), "bf16");
    expect([...back]).toEqual([1, -2.5, 1, 1.015625, Number.POSITIVE_INFINITY, Number.NaN, Number.NEGATIVE_INFINITY, 0, -0]);
  });

  test("f16, also from bytes that are not aligned", () => {
    const bytes = Buffer.concat([Uint8Array.of(0), new Uint8Array(Float16Array.from([0.5, -65504, 2 ** -24]).buffer)]).subarray(
      1,
    );
    expect([...toF32(bytes, "f16")]).toEqual([0.5, -65504, 2 ** -24]);
  });
});

describe("writing", () => {
  test("is whole or not at all", () => {
    const folder = fresh();
    const path = join(folder, "x");
    writeFileAtomic(path, "first");
    writeFileAtomic(path, "second");
    expect(readFileSync(path, "utf8")).toBe("second");
    const blocked = join(writeIn(fresh(), "file", ""), "file", "x"); // a file where a folder should be
    expect(() => writeFileAtomic(blocked, "x")).toThrow(MloraError);
    expect(readdirSync(folder)).toEqual(["x"]);
  });

  test("a full disk is one clear error", () => {
    if (!existsSync("/dev/full")) return;
    using full = openAppender("/dev/full");
    expect(() => full.append("x")).toThrow(/cannot write \/dev\/full.*ENOSPC/);
  });
});

describe("an output folder", () => {
  test("belongs to one run at a time, and a stale lock to none", () => {
    const folder = join(fresh(), "out");
    {
      using _ = claimOutput(folder);
      expect(refused(() => claimOutput(folder)).message).toContain(`in use by another mlora, process ${process.pid}`);
    }
    writeFileSync(join(folder, ".mlora.lock"), "999999999 of-another-boot");
    using _again = claimOutput(folder);
  });

  test("with another run, with foreign files, or that is a file, is refused", () => {
    expect(refused(() => claimOutput(writeIn(fresh(), "metrics.jsonl", ""))).code).toBe("output.foreign");
    expect(refused(() => claimOutput(writeIn(fresh(), "thesis.doc", ""))).message).toContain("thesis.doc");
    const file = join(writeIn(fresh(), "f", ""), "f");
    expect(refused(() => claimOutput(file))).toMatchObject({ code: "output.folder", message: `${file} is no folder` });
    for (const long of ["x".repeat(300), "x".repeat(200).concat("/").repeat(30)])
      expect(refused(() => claimOutput(join(fresh(), long))).message).toContain("ENAMETOOLONG");
  });
});

// GGUF files: what they say in place of a config.json, and what cannot be read of them, in one line. Damage never crashes.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { readModelConfig, readModelSpec } from "../../src/files/config.ts";
import { modelFingerprint } from "../../src/files/fingerprint.ts";
import { stopTokens } from "../../src/files/generation.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { tokenizerFolder } from "../../src/files/tokenizer.ts";
import { copyFormat, FORMATS, valuesOf } from "../helpers/formats.ts";
import { type GgufChanges, rewriteGguf } from "../helpers/gguf.ts";
import { mutateBytes } from "../helpers/mutate.ts";
import { refused } from "../helpers/refused.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-gguf-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let made = 0;
/** A copy of a model, by the path that names it. */
const copy = (name: string): string => copyFormat(join(root, `${made++}`), name);

/** What a run reads before it plans. */
const check = (path: string) => readModelFacts(path, readModelSpec(path));

const Q = "model.layers.0.self_attn.q_proj.weight";

/** A GGUF with changes; the path that names it. */
function changed(name: string, changes: GgufChanges): string {
  const path = copy(name);
  const whole = join(path, "..", "whole.gguf");
  rewriteGguf(path, whole, changes);
  cpSync(whole, path);
  unlinkSync(whole);
  return path;
}

describe("a GGUF", () => {
  const Q_0 = "blk.0.attn_q.weight";
  const cases: readonly (readonly [string, GgufChanges, string])[] = [
    ["another architecture", { metadata: { "general.architecture": "mamba" } }, 'general.architecture is "mamba"'],
    ["no architecture", { metadata: { "general.architecture": null } }, "general.architecture is missing"],
    ["no sizes", { metadata: { "llama.block_count": null } }, "llama.block_count is missing"],
    ["text for a number", { metadata: { "llama.block_count": "2" } }, 'llama.block_count is "2"'],
    [
      "heads of two sizes",
      { metadata: { "llama.attention.value_length": 8 } },
      "llama.attention.value_length is 8; only 16 is read",
    ],
    ["a part of a head rotated", { metadata: { "llama.rope.dimension_count": 8 } }, "all of a head is rotated"],
    ["experts", { metadata: { "llama.expert_count": 8 } }, "llama.expert_count is 8, which is not read"],
    ["a scale of the logits", { metadata: { "llama.logit_scale": 0.25 } }, "llama.logit_scale is 0.25, which is not read"],
    ["attention in both directions", { metadata: { "llama.attention.causal": false } }, "attention.causal is false"],
    ["layers that differ", { metadata: { "llama.attention.head_count_kv": [2, 4] } }, "differs from layer to layer"],
    [
      "yarn",
      { metadata: { "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4 } },
      'rope.scaling.type is "yarn"',
    ],
    [
      "factors of another rope",
      { tensors: { "rope_freqs.weight": { data: new Uint8Array(Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]).buffer) } } },
      "factors up to 8 that are not those of a Llama 3",
    ],
    [
      "a type that is not read",
      { tensors: { [Q_0]: { type: 10 } } },
      `model.layers.0.self_attn.q_proj.weight is Q2_K, which is not read`,
    ],
    ["a type that nobody knows", { tensors: { [Q_0]: { type: 99 } } }, "is type 99, which is not read"],
    ["a tensor left out", { tensors: { [Q_0]: null } }, "model.layers.0.self_attn.q_proj.weight is missing"],
    ["another shape", { tensors: { [Q_0]: { shape: [32, 64] } } }, "q_proj.weight is [32,64], wanted [64,64]"],
    ["rows that are no blocks", { tensors: { [Q_0]: { shape: [128, 16] } } }, "is Q8_0 with rows of 16 values"],
    ["a tensor that goes on beyond the end", { tensors: { [Q_0]: { shape: [1 << 20, 64] } } }, "the file has"],
    ["an absurd tensor", { tensors: { [Q_0]: { shape: [2 ** 50, 2 ** 50] } } }, "has the shape"],
    ["an alignment of 3", { metadata: { "general.alignment": 3 } }, "general.alignment is 3"],
    ["the first version", { version: 1 }, "is of version 1"],
    ["the other byte order", { version: 0x03000000 }, "of the other byte order"],
  ];
  test.each(cases)("with %s", (_, changes, message) => {
    const error = refused(() => check(changed("gguf-llama", changes)));
    expect(error.message).toContain(message);
    expect(error.message).not.toContain("\n");
    expect(error.hint).toBeDefined();
  });

  test("is read as another writes it once more, with a window as a Mistral, with keys that are not known named", () => {
    const metadata = { "llama.attention.sliding_window": 7, "llama.something_new": 1, "llama.rope.scaling.type": "none" };
    const path = changed("gguf-llama", { metadata, tensors: { "rope_freqs.weight": null } });
    const { spec, notices } = check(path);
    expect([spec.family, spec.windows, spec.ropes[0]!.scaling]).toEqual(["mistral", [7, 7], null]);
    expect(notices).toContain(`${path}: keys that are not known are left out: something_new`);
    const before = copy("gguf-llama");
    const own = readModelSpec(before);
    for (const name of [Q, "model.layers.1.mlp.down_proj.weight"])
      expect(valuesOf(path, spec, name)).toEqual(valuesOf(before, own, name));
  });

  test("has the biases of a Llama in the order of its rows", () => {
    const rows = (name: string) => (name === "attn_k" || name === "attn_v" ? 32 : 64);
    // as llama.cpp has them: row 2 i of a head of 16 turns with row 2 i + 1, in place of row i with row i + 8
    const turned = (row: number) => row - (row % 16) + (row % 2) * 8 + ((row % 16) >> 1);
    const bias = (layer: number, name: string) => {
      const values = Float32Array.from({ length: rows(name) }, (_, row) => (/_[qk]$/.test(name) ? turned(row) : row));
      return [`blk.${layer}.${name}.bias`, { type: 0, shape: [rows(name)], data: new Uint8Array(values.buffer) }] as const;
    };
    const names = ["attn_q", "attn_k", "attn_v", "attn_output"];
    const path = changed("gguf-llama", {
      tensors: Object.fromEntries([0, 1].flatMap((layer) => names.map((name) => bias(layer, name)))),
    });
    const { spec } = check(path);
    expect([spec.qkvBias, spec.oBias, spec.mlpBias]).toEqual([true, true, false]);
    for (const name of ["q_proj", "k_proj", "v_proj", "o_proj"])
      expect([...valuesOf(path, spec, `model.layers.1.self_attn.${name}.bias`)]).toEqual([
        ...Array(name[0] === "k" || name[0] === "v" ? 32 : 64).keys(),
      ]);
  });

  test("with linear scaling, of either writing", () => {
    for (const metadata of [
      { "qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 4 },
      { "qwen2.rope.scale_linear": 4 },
    ])
      expect(check(changed("gguf-qwen2", { metadata })).spec.ropes[0]!.scaling).toEqual({ kind: "linear", factor: 4 });
    const { message } = refused(() => check(changed("gguf-qwen2", { metadata: { "qwen2.attention.sliding_window": 9 } })));
    expect(message).toContain("a window of a qwen2 is not read");
  });

  test("stops at what ends a text and what ends a turn", () => {
    expect(stopTokens(copy("gguf-llama"))).toEqual([256]);
    expect(stopTokens(changed("gguf-llama", { metadata: { "tokenizer.ggml.eot_token_id": 258 } }))).toEqual([256, 258]);
  });

  test("is named by its file or by a folder with one of them; its name does not matter", () => {
    const path = copy("gguf-llama");
    const folder = join(path, "..");
    expect(readModelConfig(folder)).toEqual(readModelConfig(path));
    const fingerprint = modelFingerprint(path);
    cpSync(path, join(folder, "other.gguf"));
    expect(modelFingerprint(join(folder, "other.gguf"))).toBe(fingerprint);
    expect(refused(() => check(folder)).message).toContain("has 2 models: model.gguf, other.gguf");
    cpSync(path, join(folder, "mmproj-other.gguf"));
    unlinkSync(join(folder, "other.gguf"));
    expect(check(folder).spec).toEqual(check(path).spec);
  });

  test("in several files needs all of them, and is named by the first", () => {
    const path = copy("gguf-qwen3");
    const [second, third] = [path.replace("00001-of", "00002-of"), path.replace("00001-of", "00003-of")];
    expect(check(join(path, "..")).spec).toEqual(check(path).spec);
    expect(refused(() => check(second)).message).toContain("is not the first of 3 files");
    const fingerprint = modelFingerprint(path);
    cpSync(second, third);
    expect(modelFingerprint(path)).not.toBe(fingerprint);
    expect(refused(() => check(path)).message).toContain(`${basename(third)} is not file 3 of 3 by its own words`);
    unlinkSync(third);
    expect(refused(() => check(path)).message).toContain(`the model has 3 files, and ${basename(third)} is missing`);
  });

  test("has the tokenizer of its own model next to it", () => {
    const path = copy("gguf-llama");
    const file = join(path, "..", "tokenizer.json");
    expect(tokenizerFolder(path)).toBe(join(path, ".."));
    const text = readFileSync(file, "utf8");
    writeFileSync(file, text.replaceAll("<|user|>", "<|human|>"));
    const { code, message } = refused(() => tokenizerFolder(path));
    expect([code, message]).toEqual(["model.tokenizer", `${file}: token 257 is "<|human|>", and ${path} has "<|user|>"`]);
    unlinkSync(file);
    expect(refused(() => tokenizerFolder(path)).hint).toContain("put tokenizer.json");
  });

  test("damaged anywhere is refused or read, and never crashes", () => {
    const good = readFileSync(join(FORMATS, "gguf-llama", "model.gguf"));
    const path = copy("gguf-llama");
    const rng = new Rng(17);
    for (let i = 0; i < 400; i++) {
      const head = mutateBytes(good.subarray(0, 6000), rng);
      writeFileSync(
        path,
        rng.below(4) === 0 ? good.subarray(0, rng.below(good.length)) : Buffer.concat([head, good.subarray(6000)]),
      );
      try {
        check(path);
      } catch (error) {
        expect(error, `mutation ${i}`).toBeInstanceOf(RequestError);
      }
    }
  });
});

// Adapters of PEFT's that change the embedding and the output head: merged, they have PEFT's losses.

import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toBf16 } from "../../src/files/convert.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "../../src/files/safetensors.ts";
import { exportModel } from "../../src/session/publishing/export-model.ts";
import { type FormatCase, lossOf, valuesOf } from "../helpers/formats.ts";

const GOLDEN = join(import.meta.dir, "..", "golden", "tables");
const root = mkdtempSync(join(tmpdir(), "mlora-tables-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

type Case = Pick<FormatCase, "ids" | "loss"> & { readonly name: string; readonly base: string };
const CASES: readonly Case[] = JSON.parse(readFileSync(join(GOLDEN, "cases.json"), "utf8")).cases;
let made = 0;
/** The tables that an adapter of the name changes. */
const TABLES: Readonly<Record<string, (isTied: boolean) => string[]>> = {
  head: () => ["head"],
  embedding: () => ["embedding"],
  both: () => ["embedding", "head"],
  "both-rslora": () => ["embedding", "head"],
  "one-for-both": (isTied) => (isTied ? ["embedding", "head"] : ["embedding"]),
  tokens: (isTied) => (isTied ? ["embedding", "head"] : ["embedding"]),
  "tokens-of-head": () => ["embedding", "head"],
};

function merged(adapter: string, base: string, print: (line: string) => void = () => undefined): string {
  const output = join(root, `merged-${made++}`);
  exportModel(adapter, { base: join(GOLDEN, base), output, dtype: "fp32", mostBytes: 1e9, print });
  return output;
}

describe.each(CASES.map((of) => [of.name, of] as const))("%s", (name, of) => {
  test("merged, it has the loss of PEFT", async () => {
    const folder = merged(join(GOLDEN, name), of.base);
    expect(Math.abs((await lossOf(folder, { ...of, tensors: {} }, "cpu")) - of.loss)).toBeLessThan(1e-5);
  });

  test("its model stays tied where both tables are one", () => {
    const isOne = /^tied-(tokens|one-for-both)$/.test(name);
    const folder = merged(join(GOLDEN, name), of.base);
    expect(readModelSpec(folder).tiedEmbeddings).toBe(isOne);
    using file = openSafetensors(join(folder, "model.safetensors"));
    expect(file.tensors.has("lm_head.weight")).toBe(!isOne);
  });

  test("it is read where it would be trained or generated with, but for whole copies", () => {
    const spec = readModelSpec(join(GOLDEN, of.base));
    const work = () =>
      readPeftAdapter(join(GOLDEN, name), spec, null, { open: () => openBaseModel(join(GOLDEN, of.base), spec) });
    if (name.includes("cop")) {
      expect(work).toThrow(RequestError);
      expect(work).toThrow(/has a whole copy of (model\.embed_tokens|lm_head)/);
    } else expect(Object.keys(work().tables!)).toEqual(TABLES[name.replace(/^(un)?tied-/, "")]!(of.base === "tied"));
  });
});

/** A copy of an adapter with another config or other tensors. */
function changed(name: string, config: object, change: (tensors: TensorData[]) => TensorData[] = (tensors) => tensors): string {
  const folder = join(root, `adapter-${made++}`);
  cpSync(join(GOLDEN, name), folder, { recursive: true });
  const path = join(folder, "adapter_config.json");
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...config }));
  const tensors: TensorData[] = [];
  {
    using file = openSafetensors(join(folder, "adapter_model.safetensors"));
    for (const [name, { shape, bytes }] of file.tensors) {
      const data = new Float32Array(bytes / 4);
      file.readInto(name, new Uint8Array(data.buffer));
      tensors.push({ name, dtype: "f32", shape, data });
    }
  }
  writeSafetensors(join(folder, "adapter_model.safetensors"), change(tensors));
  return folder;
}

const HEAD = "base_model.model.lm_head";
const without = (end: string) => (tensors: TensorData[]) => tensors.filter(({ name }) => !name.endsWith(end));
const replaced = (end: string, by: Partial<TensorData>) => (tensors: TensorData[]) =>
  tensors.map((tensor) => (tensor.name.endsWith(end) ? { ...tensor, ...by } : tensor));
const zeros = (...shape: number[]) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) });

describe("refuses", () => {
  const cases: readonly (readonly [string, () => string, string])[] = [
    [
      "tokens beyond the vocabulary",
      () => changed("untied-tokens", { trainable_token_indices: [3, 31, 40] }),
      "expected different tokens from 0 to 39",
    ],
    ["a token twice", () => changed("untied-tokens", { trainable_token_indices: [3, 3, 7] }), "expected different tokens"],
    [
      "other rows than tokens",
      () => changed("untied-tokens", { trainable_token_indices: [3, 31] }),
      "is [3,8], expected [2,8]",
    ],
    [
      "no tokens for the rows",
      () => changed("untied-tokens", { trainable_token_indices: null }),
      "trainable_tokens_delta is not known",
    ],
    [
      "copies of other modules",
      () => changed("untied-copies", { modules_to_save: ["embed_tokens", "norm"] }),
      "modules_to_save names norm",
    ],
    ["half of a pair", () => changed("untied-head", {}, without("lm_head.lora_B.weight")), "lm_head.lora_B.weight is missing"],
    ["another rank", () => changed("untied-head", { r: 2 }), "is [3,8], expected [2,8]"],
    [
      "a base that was changed",
      () => changed("untied-head", {}, replaced("lm_head.base_layer.weight", zeros(40, 8))),
      "is not the base model's lm_head.weight",
    ],
    [
      "another vocabulary",
      () => changed("untied-copies", {}, replaced("lm_head.weight", zeros(44, 8))),
      "lm_head.weight is [44,8], expected [40,8]",
    ],
    [
      "what is not known",
      () => changed("untied-head", {}, (t) => [...t, { name: `${HEAD}.lora_C`, dtype: "f32", ...zeros(1) }]),
      "lm_head.lora_C is not known",
    ],
    [
      "values that are none",
      () => changed("untied-head", {}, replaced("lm_head.lora_B.weight", { data: new Float32Array(120).fill(Number.NaN) })),
      "no finite numbers",
    ],
  ];
  test.each(cases)("%s", (_, adapter, message) => {
    const work = () => merged(adapter(), "untied");
    expect(work).toThrow(RequestError);
    expect(work).toThrow(message);
  });
});

test("a copy in bf16 is that of a base in f32", () => {
  const spec = readModelSpec(join(GOLDEN, "untied"));
  const copy = { dtype: "bf16", data: toBf16(valuesOf(join(GOLDEN, "untied"), spec, "lm_head.weight")) } as const;
  const adapter = changed("untied-head", {}, replaced("lm_head.base_layer.weight", copy));
  const [own, other] = [merged(join(GOLDEN, "untied-head"), "untied"), merged(adapter, "untied")];
  expect(valuesOf(other, spec, "lm_head.weight")).toEqual(valuesOf(own, spec, "lm_head.weight"));
});

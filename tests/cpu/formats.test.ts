// Base models in FP8, in bitsandbytes' 4 bits and as GGUF are their dequantised values, bit for bit, by the libraries that
// define the formats.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../../src/files/config.ts";
import { toBf16 } from "../../src/files/convert.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { STORED_TYPES, type StoredType, storedValues } from "../../src/files/stored.ts";
import { FORMAT_CASES, FORMATS, keepsNf4, lossOf, pathIn, valuesOf, writeDequantised } from "../helpers/formats.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-formats-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const bytesIn = (text: string): Uint8Array<ArrayBuffer> => new Uint8Array(Buffer.from(text, "base64"));
const hashOf = (bytes: Uint8Array): string => new Bun.CryptoHasher("sha256").update(bytes).digest("hex");

type BlockCase = { readonly type: StoredType; readonly raw: string; readonly values: string };
const BLOCKS: readonly BlockCase[] = JSON.parse(readFileSync(join(FORMATS, "blocks.json"), "utf8")).cases;

describe.each(BLOCKS.map((of) => [of.type, of] as const))("%s", (type, { raw, values: text }) => {
  const [bytes, want] = [bytesIn(raw), new Float32Array(bytesIn(text).buffer)];

  test("blocks have the values of gguf, as f32 and as the nearest bf16", () => {
    const [got, halves] = [new Float32Array(want.length), new Uint16Array(want.length)];
    storedValues(type, bytes, want.length, "f32", new Uint8Array(got.buffer));
    storedValues(type, bytes, want.length, "bf16", new Uint8Array(halves.buffer));
    expect(Buffer.from(got.buffer).equals(Buffer.from(want.buffer))).toBe(true);
    expect(halves).toEqual(toBf16(want));
  });

  test("fewer blocks are the first of them", () => {
    const { values } = STORED_TYPES[type];
    const some = Math.min(3, want.length / values - 1) * values;
    const got = new Float32Array(some);
    storedValues(type, bytes, some, "f32", new Uint8Array(got.buffer));
    expect(got).toEqual(want.subarray(0, some).slice());
  });
});

describe.each(Object.entries(FORMAT_CASES))("%s", (name, of) => {
  const path = pathIn(join(FORMATS, name), name);
  const { spec, exact, notices } = readModelFacts(path, readModelSpec(path));

  test("tensors are the dequantised ones, bit for bit", () => {
    expect([...tensorShapes(spec).keys()].sort()).toEqual(Object.keys(of.tensors).sort());
    for (const [tensor, want] of Object.entries(of.tensors))
      expect(hashOf(new Uint8Array(valuesOf(path, spec, tensor).buffer)), tensor).toBe(want);
  });

  test("any part of a tensor is that part, also as bf16", () => {
    const rng = new Rng(2, name.length);
    using files = openBaseModel(path, spec);
    for (const [tensor, shape] of tensorShapes(spec)) {
      const [whole, count] = [valuesOf(path, spec, tensor), sizeOf(shape)];
      const halves = toBf16(whole);
      for (const _ of range(6)) {
        const first = rng.below(count);
        const some = 1 + rng.below(count - first);
        const [values, rounded] = [new Float32Array(some), new Uint16Array(some)];
        files.read(tensor, new Uint8Array(values.buffer), 4 * first, "f32");
        files.read(tensor, new Uint8Array(rounded.buffer), 2 * first, "bf16");
        expect(values, `${tensor} from ${first}`).toEqual(whole.slice(first, first + some));
        expect(rounded, `${tensor} from ${first}`).toEqual(halves.slice(first, first + some));
      }
    }
  });

  test("the loss is that of transformers, and bit for bit that of the same values in f32, on one stage and on two", async () => {
    const plain = join(root, name);
    writeDequantised(plain, path, spec);
    const loss = await lossOf(path, of, "cpu");
    expect(Math.abs(loss - of.loss)).toBeLessThan(1e-5);
    expect(await lossOf(plain, of, "cpu")).toBe(loss);
    if (spec.layers > 1) expect(await lossOf(path, of, "cpu", 2)).toBe(loss);
  });

  test("what is nested nf4 stays so; the user hears what the files hold", () => {
    const others = { "nf4-nested": [], "nf4-some": ["0.qkv"] }[name];
    expect(exact).toEqual(others ? { format: "nf4", others, tables: true } : null);
    expect(notices).toHaveLength(1);
    expect(notices[0]).toContain(exact === null ? "dequantised when they are loaded" : "as they are");
  });
});

test.each(["nf4-nested", "nf4-some"])("%s: nf4 is held as it is, and its values are those of the file", async (name) => {
  using device = new CpuDevice(2);
  const kept = await keepsNf4(device, join(FORMATS, name));
  expect(kept).toHaveLength(name === "nf4-some" ? 6 : 7);
  for (const { tensor, got, want } of kept) expect(got, tensor).toEqual(want);
});

test.each(Object.entries(FORMAT_CASES).filter(([, { config }]) => config))(
  "%s says what config.json would",
  (name, { config }) => {
    expect(readModelConfig(pathIn(join(FORMATS, name), name)).config).toMatchObject(config!);
  },
);

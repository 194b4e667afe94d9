// `mlora export --gguf`: the file holds the merged model, as the Hugging Face folder does, and is whole or absent; the adapter
// alone is the product that was trained. That llama.cpp computes the same is scripts/nightly/gguf.ts's to show.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import { linearShape } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { openGguf } from "../../src/files/gguf/header.ts";
import { type PeftAdapter, readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import type { LinearFactor } from "../../src/methods/layout.ts";
import { valuesOf } from "../helpers/formats.ts";
import { Workplace } from "../helpers/program.ts";
import { LINEARS } from "../helpers/tiny.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const at = (name: string) => join(place.root, name);
const spec = readModelSpec(place.model);

/** An adapter of random factors of about this size. */
function writeAdapter(name: string, more: Partial<PeftAdapter> = {}, base = place.model, scale = 0.2): string {
  const adapter = { rank: 3, alpha: 6, dropout: 0, targets: LINEARS, rslora: false, baseModel: base, ...more };
  const of = readModelSpec(base);
  const rng = new Rng(5);
  const names = adapter.method === "dora" ? (["A", "B", "M"] as const) : (["A", "B"] as const);
  const factors: LinearFactor[] = range(of.layers).flatMap((layer) =>
    adapter.targets.flatMap((linear) =>
      names.map((factor) => {
        const size = (factor === "M" ? 1 : adapter.rank) * linearShape(of, linear)[factor === "A" ? "in" : "out"];
        const middle = factor === "M" ? 1 : 0;
        return { layer, linear, factor, values: Float32Array.from({ length: size }, () => middle + scale * rng.normal()) };
      }),
    ),
  );
  writePeftAdapter(at(name), of, adapter, factors);
  return at(name);
}

async function exported(adapter: string, ...args: readonly string[]) {
  const { code, out, err } = await place.mlora("export", adapter, ...args);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return out;
}

const adapter = writeAdapter("adapter", { rslora: true });
const merged = at("merged");

test("f32 has the values of the merged folder, with a tokenizer that is the base's; a GGUF of that one has them again", async () => {
  await exported(adapter, "--output", merged, "--dtype", "fp32");
  const out = await exported(adapter, "--output", at("m.gguf"), "--gguf", "f32");
  expect(out).toContain("the merged model in f32");
  const own = readModelSpec(at("m.gguf"));
  expect({ ...own, maxPositions: 0 }).toEqual({ ...spec, maxPositions: 0 });
  for (const name of tensorShapes(spec).keys())
    expect(valuesOf(at("m.gguf"), own, name), name).toEqual(valuesOf(merged, spec, name));
  // keys of the tokenizer are copied as they are
  const zero = writeAdapter("zero", {}, at("m.gguf"), 0);
  await exported(zero, "--output", at("again.gguf"), "--gguf", "f32");
  const keys = (path: string) => {
    using file = openGguf(path, ["tokenizer.ggml.tokens"]);
    return [...file.metadata].filter(([key]) => key.startsWith("tokenizer."));
  };
  expect(keys(at("again.gguf"))).toEqual(keys(at("m.gguf")));
  for (const name of tensorShapes(spec).keys())
    expect(valuesOf(at("again.gguf"), own, name), name).toEqual(valuesOf(merged, spec, name));
}, 60_000);

test.each(["f16", "bf16", "q8_0", "q4_k_m"])(
  "%s is close to the merged values",
  async (type) => {
    await exported(adapter, "--output", at(`${type}.gguf`), "--gguf", type, "--json");
    const own = readModelSpec(at(`${type}.gguf`));
    for (const name of tensorShapes(spec).keys()) {
      const [found, wanted] = [valuesOf(at(`${type}.gguf`), own, name), valuesOf(merged, spec, name)];
      const most = Math.max(...wanted.map(Math.abs));
      const off = Math.max(...found.map((value, i) => Math.abs(value - wanted[i]!))) / most;
      expect(off, name).toBeLessThan({ f16: 1e-3, bf16: 5e-3, q8_0: 8e-3, q4_k_m: 0.07 }[type]!);
    }
  },
  60_000,
);

test("the adapter alone has its factors, rows of q and k in pairs, and the scale of rsLoRA", async () => {
  await exported(adapter, "--output", at("lora.gguf"), "--gguf", "adapter");
  using file = openGguf(at("lora.gguf"));
  expect(file.metadata.get("adapter.type")).toBe("lora");
  const read = readPeftAdapter(adapter, spec);
  expect(Number(file.metadata.get("adapter.lora.alpha")) / 3).toBeCloseTo(read.scale, 6);
  const values = (name: string) => {
    const { shape, offset, bytes } = file.tensors.get(name)!;
    const raw = new Uint8Array(bytes!);
    file.read(raw, offset);
    return { shape, values: new Float32Array(raw.buffer, 0, sizeOf(shape)) };
  };
  expect(file.tensors.size).toBe(2 * LINEARS.length * spec.layers);
  const a = values("blk.1.ffn_down.weight.lora_a");
  expect([a.shape, [...a.values]]).toEqual([[3, spec.intermediate], [...read.tensor(1, "down_proj", "A")]]);
  const b = values("blk.1.attn_q.weight.lora_b");
  const own = read.tensor(1, "q_proj", "B");
  const half = spec.headDim / 2;
  for (let row = 0; row < spec.hidden; row++) {
    const within = row % spec.headDim;
    const from = row - within + (within % 2) * half + Math.floor(within / 2);
    expect([...b.values.subarray(3 * row, 3 * row + 3)]).toEqual([...own.subarray(3 * from, 3 * from + 3)]);
  }
}, 120_000);

test("what cannot be is one error, and leaves nothing", async () => {
  const dora = writeAdapter("dora", { method: "dora" });
  const before = readdirSync(place.root).sort();
  const fails = async (adapter: string, ...args: readonly string[]) => {
    const { code, err } = await place.mlora("export", adapter, ...args);
    expect(code, err).toBe(2);
    return err;
  };
  expect(await fails(dora, "--output", at("d.gguf"), "--gguf", "adapter")).toContain("is a dora");
  expect(await fails(adapter, "--output", at("x.gguf"), "--gguf", "q5")).toContain("--gguf is 'q5'");
  expect(await fails(adapter, "--output", at("x.gguf"), "--gguf", "f16", "--dtype", "fp32")).toContain(
    "--dtype is of a Hugging",
  );
  expect(await fails(adapter, "--output", at("x.bin"), "--gguf", "f16")).toContain("does not end with .gguf");
  expect(await fails(adapter, "--output", at("m.gguf"), "--gguf", "f16")).toContain("is there already");
  expect(readdirSync(place.root).sort()).toEqual(before);
  const path = join(adapter, "adapter_config.json");
  const config = readFileSync(path, "utf8");
  writeFileSync(path, JSON.stringify({ ...JSON.parse(config), lora_alpha: 1e8 }));
  const { code, err } = await place.mlora("export", adapter, "--output", at("x.gguf"), "--gguf", "f16");
  writeFileSync(path, config);
  expect([code, err]).toEqual([1, expect.stringContaining("f16 ends at 65504")]);
  expect(existsSync(at("x.gguf"))).toBe(false);
  expect(readdirSync(place.root).sort()).toEqual(before);
}, 60_000);

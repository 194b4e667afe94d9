// Quantised base models from the command line: a run on one gives what a run on its dequantised values gives, adapters are
// exported, and merged into these values.

import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { tensorShapes } from "../../src/families/tensors.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { copyFormat, FORMAT_CASES, valuesOf, writeDequantised } from "../helpers/formats.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const recipe = (model: string, more = "") => `[model]
path = "${model}"
${more}
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "a"
rank = 4
steps = 3
batch_size = 2
learning_rate = 1e-2
data = { train = "rows.jsonl" }
`;
const ROWS = { "rows.jsonl": sums(8) };
const outOf = (path: string): string => join(path, "..", "out");
const losses = (path: string): unknown[] => metrics(outOf(path), "step").map(({ loss }) => loss);

async function trained(model: string, more?: string): Promise<{ readonly path: string; readonly err: string }> {
  const path = place.project(recipe(model, more), ROWS);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return { path, err };
}

describe.each(Object.keys(FORMAT_CASES))("%s", (name) => {
  const folder = join(place.root, name);
  const model = copyFormat(folder, name);
  const plain = join(place.root, `${name}-plain`);
  writeDequantised(plain, model, readModelSpec(model));

  test("trains as its dequantised values in f32, to the same losses and weights; it is merged into them", async () => {
    const [own, dense] = await Promise.all([trained(model), trained(plain)]);
    expect(own.err).toContain("linear weights are");
    expect(losses(own.path)).toEqual(losses(dense.path));
    const [mine, theirs] = [own, dense].map(({ path }) => readFileSync(join(outOf(path), "a", "adapter_model.safetensors")));
    expect(mine!.equals(theirs!)).toBe(true);
    const merged = [own, dense].map(({ path }) => join(path, "..", "merged"));
    for (const [i, { path }] of [own, dense].entries()) {
      const ended = await place.mlora("export", join(outOf(path), "a"), "--output", merged[i]!, "--dtype", "fp32");
      expect([ended.code, ended.code === 0 ? "" : ended.err]).toEqual([0, ""]);
    }
    const spec = readModelSpec(merged[0]!);
    expect(spec).toEqual(readModelSpec(merged[1]!));
    expect(JSON.parse(readFileSync(join(merged[0]!, "config.json"), "utf8")).quantization_config).toBeUndefined();
    for (const tensor of tensorShapes(spec).keys())
      expect(valuesOf(merged[0]!, spec, tensor), tensor).toEqual(valuesOf(merged[1]!, spec, tensor));
    for (const { path } of [own, dense]) rmSync(join(path, ".."), { recursive: true });
  }, 60_000);
});

test("a plan counts nested nf4 in its bits", async () => {
  const [packed, dense] = await Promise.all(
    ["auto", "fp32"].map(async (precision) => {
      const path = place.project(recipe(join(place.root, "nf4-nested"), `precision = "${precision}"`), ROWS);
      const { code, out } = await place.mlora("plan", path, "--json");
      expect(code).toBe(0);
      return JSON.parse(out).stages[0].memory_bytes.weights as number;
    }),
  );
  const values = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 544; // of the linears: 4 bytes, or half a byte and a bit
  expect(dense! - packed!).toBeWithin(3.3 * values, 3.5 * values);
  const some = place.project(recipe(join(place.root, "nf4-some")), ROWS);
  expect((await place.mlora("plan", some)).out).toContain("held as nf4, 1 group of linears as f32");
}, 120_000);

// VeRA from the command line: trained, merged, generated with, continued, and what is refused.

import { afterAll, expect, test } from "bun:test";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { sizeOf } from "../../src/base/shape.ts";
import { linearShape, modulePath } from "../../src/families/linears.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toF32 } from "../../src/files/convert.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, writeSafetensors } from "../../src/files/safetensors.ts";
import { drawn, projectionOf } from "../../src/methods/projection.ts";
import { writeByteTokenizer } from "../helpers/model.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";
import { LINEARS } from "../helpers/tiny.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const GOLDEN = join(import.meta.dir, "..", "golden", "peft");

const recipe = (adapter: string, model = place.model) => `[model]
path = "${model}"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "vectors"
method = "vera"
data = { train = "rows.jsonl", eval = "rows.jsonl" }
learning_rate = 5e-2
steps = 12
eval_every = 12
${adapter}`;
const rows = { "rows.jsonl": sums(20) };

/** All tensors of a safetensors file, as f32. */
function valuesOf(path: string): Map<string, { readonly shape: readonly number[]; readonly values: Float32Array }> {
  using file = openSafetensors(path);
  return new Map(
    [...file.tensors].map(([name, { shape, bytes, dtype }]) => {
      const raw = new Uint8Array(bytes);
      file.readInto(name, raw);
      return [name, { shape, values: toF32(raw, dtype!) }];
    }),
  );
}

test("no element of A is one of B, for a seed where they once were the same in another order", () => {
  const { a, b } = projectionOf(readModelSpec(place.model), ["q_proj"], 8, 2561);
  const [count, seen] = [2 ** 22, new Uint8Array(2 ** 24)];
  const placeOf = (value: number) => (value + 1) * 2 ** 23;
  for (const value of drawn({ ...a, bound: 1 }, count)) seen[placeOf(value)] = 1;
  const shared = drawn({ ...b, bound: 1 }, count).filter((value) => seen[placeOf(value)] === 1).length;
  expect(shared / count).toBeLessThan(0.25); // of 24 bits each, 22 % by chance
});

test("learns; merged, it has the loss that it had, and says the same token for token", async () => {
  const path = place.project(recipe("rank = 24\nprojection_seed = 11\ntargets = ['q_proj', 'k_proj', 'down_proj']\n"), rows);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const out = join(path, "..", "out");
  const losses = metrics(out, "evaluation").map((line) => line["loss"] as number);
  expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.1);
  const merged = join(place.root, "merged");
  expect((await place.mlora("export", join(out, "vectors"), "--output", merged, "--dtype", "fp32")).code).toBe(0);
  const again = place.project(recipe("rank = 3\n", merged), rows);
  expect((await place.mlora("run", again)).code).toBe(0);
  expect(metrics(join(again, "..", "out"), "evaluation")[0]!["loss"] as number).toBeCloseTo(losses.at(-1)!, 4);
  const said = async (...of: string[]) => {
    const flags = ["--prompt", "3 + 4 =", "--max-new-tokens", "12", "--precision", "fp32", "--device", "cpu", "--json"];
    const { code, out, err } = await place.mlora("generate", ...of, ...flags);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    return (JSON.parse(out.trim().split("\n")[0]!) as { text: string }).text;
  };
  expect(await said("--adapter", join(out, "vectors"))).toBe(await said(merged));

  const on = place.project(
    recipe(`rank = 24\nprojection_seed = 11\ntargets = ['q_proj', 'k_proj', 'down_proj']\nfrom = "${out}/vectors"\n`),
    rows,
  );
  expect((await place.mlora("run", on)).code).toBe(0);
  expect(metrics(join(on, "..", "out"), "evaluation")[0]!["loss"]).toBe(losses.at(-1)!);
  const other = await place.mlora(
    "run",
    place.project(recipe(`rank = 24\ntargets = ['q_proj', 'k_proj', 'down_proj']\nfrom = "${out}/vectors"\n`), rows),
  );
  expect([other.code, other.err]).toEqual([2, expect.stringContaining("projection_seed 11 there, 0 in the recipe")]);
}, 60_000);

test("what PEFT trained is merged by PEFT's formula: W + diag(b) B diag(d) A, of its own projections", async () => {
  const model = join(GOLDEN, "llama", "model");
  const adapter = join(GOLDEN, "vera", "all", "final");
  const merged = join(place.root, "golden");
  const { code, err } = await place.mlora("export", adapter, "--base", model, "--output", merged, "--dtype", "fp32");
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const spec = readModelSpec(model);
  const weightOf = (folder: string, name: string) => {
    using files = openBaseModel(folder, spec);
    const values = new Float32Array(sizeOf(files.tensor(name).shape));
    files.read(name, new Uint8Array(values.buffer), 0, "f32");
    return values;
  };
  const tensors = valuesOf(join(adapter, "adapter_model.safetensors"));
  const [a, b] = ["vera_A", "vera_B"].map((name) => tensors.get(`base_model.${name}`)!);
  const [rank, stride] = a!.shape as [number, number];
  for (const linear of LINEARS) {
    const name = `model.layers.1.${modulePath(linear)}`;
    const [d, scale] = ["d", "b"].map((of) => tensors.get(`base_model.model.${name}.vera_lambda_${of}`)!.values);
    const { in: width, out } = linearShape(spec, linear);
    const [before, after] = [model, merged].map((folder) => weightOf(folder, `${name}.weight`));
    for (let n = 0; n < out; n++)
      for (let k = 0; k < width; k++) {
        let sum = 0;
        for (let r = 0; r < rank; r++) sum += b!.values[n * rank + r]! * d![r]! * a!.values[r * stride + k]!;
        expect(after![n * width + k]!).toBeCloseTo(before![n * width + k]! + scale![n]! * sum, 5);
      }
  }
}, 120_000);

test("projections of another program are read, merged and generated with, but not continued", async () => {
  const folder = join(place.root, "foreign");
  cpSync(join(GOLDEN, "vera", "fresh", "final"), folder, { recursive: true });
  const file = join(folder, "adapter_model.safetensors");
  const spec = readModelSpec(join(GOLDEN, "llama", "model"));
  const targets = ["k_proj", "o_proj", "up_proj"] as const;
  expect(readPeftAdapter(folder, spec).own).toEqual({ projectionSeed: 0, dInitial: expect.closeTo(0.1), isDrawnHere: true });
  const tensors = valuesOf(file);
  const a = tensors.get("base_model.vera_A")!;
  expect(a.values).toEqual(drawn(projectionOf(spec, targets, 33, 0).a, a.values.length));
  a.values[7] = a.values[7]! + 1;
  writeSafetensors(
    file,
    [...tensors].map(([name, { shape, values }]) => ({ name, shape, dtype: "f32" as const, data: values })),
  );
  const saved = readPeftAdapter(folder, spec);
  expect(saved.own!.isDrawnHere).toBe(false);
  expect(saved.tensor(0, "k_proj", "A")[7]! / saved.tensor(0, "k_proj", "lambda_d")[0]!).toBeCloseTo(a.values[7]!, 5);
  tensors.delete("base_model.vera_A");
  const without = join(place.root, "without");
  cpSync(folder, without, { recursive: true });
  writeSafetensors(
    join(without, "adapter_model.safetensors"),
    [...tensors].map(([name, { shape, values }]) => ({ name, shape, dtype: "f32" as const, data: values })),
  );
  const unsaved = await place.mlora(
    "export",
    without,
    "--base",
    join(GOLDEN, "llama", "model"),
    "--output",
    join(place.root, "x"),
  );
  expect([unsaved.code, unsaved.err]).toEqual([2, expect.stringContaining("save_projection=True")]);
  const base = join(place.root, "base");
  cpSync(join(GOLDEN, "llama", "model"), base, { recursive: true });
  writeByteTokenizer(base);
  const path = place.project(recipe(`rank = 33\ntargets = ${JSON.stringify(targets)}\nfrom = "${folder}"\n`, base), rows);
  const { code, err } = await place.mlora("run", path);
  expect([code, err]).toEqual([2, expect.stringContaining("its projections were not drawn by mlora")]);
}, 120_000);

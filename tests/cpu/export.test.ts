// `mlora export`: a merged model is what its adapter made of the base, and under its name there is a whole one or none.

import { afterAll, describe, expect, test } from "bun:test";
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { basename, join, relative } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range, sizeOf } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import { tensorShapes } from "../../src/families/tensors.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import { type Merge, shardsOf, sharedBase, verifyMerged, writeShards } from "../../src/files/merge.ts";
import { type PeftAdapter, readPeftAdapter, writePeftAdapter } from "../../src/files/peft.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";
import type { LinearFactor } from "../../src/methods/layout.ts";
import { smallDisk } from "../helpers/disk.ts";
import { mergedBy, tensorsOf } from "../helpers/merged.ts";
import { beforeItsEnd, inTheMiddle } from "../helpers/middle.ts";
import { needs } from "../helpers/needs.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";
import { LINEARS } from "../helpers/tiny.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const at = (name: string) => join(place.root, name);
const spec = readModelSpec(place.model);

const factorsOf = (method?: string) => (method === "dora" ? (["A", "B", "M"] as const) : (["A", "B"] as const));

/** An adapter of random factors, in a folder of the workplace. */
function writeAdapter(name: string, more: Partial<PeftAdapter> = {}, of: ModelSpec = spec): string {
  const adapter = { rank: 3, alpha: 6, dropout: 0, targets: LINEARS, rslora: false, baseModel: place.model, ...more };
  const rng = new Rng(5);
  const factors: LinearFactor[] = range(of.layers).flatMap((layer) =>
    adapter.targets.flatMap((linear) =>
      factorsOf(adapter.method).map((factor) => {
        const size = (factor === "M" ? 1 : adapter.rank) * linearShape(of, linear)[factor === "A" ? "in" : "out"];
        const middle = factor === "M" ? 1 : 0;
        return { layer, linear, factor, values: Float32Array.from({ length: size }, () => middle + 0.2 * rng.normal()) };
      }),
    ),
  );
  writePeftAdapter(at(name), of, adapter, factors);
  return at(name);
}

/** The tiny model again, stored otherwise, in `shards` files. */
function writeBase(name: string, dtype: "f16" | "f32", shards: number): string {
  const folder = at(name);
  cpSync(place.model, folder, { recursive: true, filter: (path) => !path.endsWith(".safetensors") });
  const values = tensorsOf(place.model, spec);
  const tensors = [...tensorShapes(spec)].map(([name, shape], i) => {
    const data = Float32Array.from(values.get(name)!, (value) => value * 1.01); // no number of bf16
    return {
      name,
      dtype,
      shape,
      data: dtype === "f32" ? data : new Float16Array(data),
      file: `part-${i % shards}.safetensors`,
    };
  });
  for (const file of new Set(tensors.map(({ file }) => file)))
    writeSafetensors(
      join(folder, file),
      tensors.filter((tensor) => tensor.file === file),
    );
  const weight_map = Object.fromEntries(tensors.map(({ name, file }) => [name, file]));
  writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map }));
  return folder;
}

const rounded = (values: Float32Array) => toF32(new Uint8Array(toBf16(values).buffer), "bf16");
const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), "utf8"));
/** What a killed or failed export left next to a folder. */
const partsOf = (output: string) => readdirSync(place.root).filter((name) => name.startsWith(`${basename(output)}.`));

const recipe = (model: string, adapters: string) => `[model]
path = "${model}"
[run]
output = "out"
device = "cpu"
[defaults]
data = { train = "rows.jsonl", eval = "held.jsonl" }
learning_rate = 1e-2
steps = 12
eval_every = 6
${adapters}`;
const rows = { "rows.jsonl": sums(20), "held.jsonl": sums(30).split("\n").slice(20).join("\n") };

describe("a merged model", () => {
  test("has the loss that the adapter had: of all linears, and of some with rank-stabilised scale", async () => {
    const trained = place.project(
      recipe(
        place.model,
        `[[adapter]]
name = "all"
rank = 4
[[adapter]]
name = "some"
rank = 6
rslora = true
targets = ["q_proj", "down_proj"]
`,
      ),
      rows,
    );
    const ran = await place.mlora("run", trained);
    expect(ran.err).not.toContain("error[");
    const output = join(trained, "..", "out");
    for (const name of ["all", "some"]) {
      const losses = metrics(output, "evaluation").filter((line) => line["adapter"] === name);
      const [before, after] = [losses[0]!["loss"] as number, losses.at(-1)!["loss"] as number];
      expect(after).toBeLessThan(before - 0.1); // so that the adapter does something
      for (const [dtype, tolerance] of [
        ["fp32", 1e-5],
        ["bf16", 2e-2],
      ] as const) {
        const to = at(`${name}-${dtype}`);
        // without --base: the adapter names it
        const { code, err, out } = await place.mlora("export", join(output, name), "--output", to, "--dtype", dtype);
        expect({ code, err }).toEqual({
          code: 0,
          err: expect.stringMatching(/^generation_config.*\nwrote file 1 of 1: .*\nverified: .*\n$/),
        });
        expect(out).toMatch(new RegExp(`^merged ${name === "all" ? 14 : 4} of 20 tensors `));
        const again = place.project(recipe(to, '[[adapter]]\nname = "fresh"\nsteps = 1\neval_every = 1\n'), rows);
        expect((await place.mlora("run", again)).code).toBe(0);
        const [fresh] = metrics(join(again, "..", "out"), "evaluation"); // B is 0 at step 0
        expect(fresh!["step"]).toBe(0);
        expect(Math.abs((fresh!["loss"] as number) - after)).toBeLessThan(tolerance);
      }
    }
  });

  for (const [what, more, scale] of [
    ["alpha / rank", { rank: 3, alpha: 6 }, 2],
    ["DoRA's", { rank: 3, alpha: 9, method: "dora", targets: ["k_proj", "o_proj", "down_proj"] as Linear[] }, 3],
    ["alpha / sqrt(rank)", { rank: 4, alpha: 3, rslora: true, targets: ["v_proj", "up_proj"] as Linear[] }, 1.5],
  ] as const)
    for (const [stored, base] of [
      ["bf16, one file", () => place.model],
      ["fp16, three files", () => writeBase(`f16-${scale}`, "f16", 3)],
      ["fp32, two files", () => writeBase(`f32-${scale}`, "f32", 2)],
    ] as const)
      test(`is W + ${what} B A, of a base in ${stored}`, async () => {
        const name = `${scale}-${stored.slice(0, 4)}`;
        const [from, adapter] = [base(), writeAdapter(`adapter-${name}`, more)];
        const want = mergedBy(tensorsOf(from, spec), adapter, spec, () => scale);
        for (const dtype of ["fp32", "bf16"]) {
          const to = at(`merged-${name}-${dtype}`);
          const args = ["--base", from, "--output", to, "--dtype", dtype, "--json"];
          const { code, out, err } = await place.mlora("export", adapter, ...args);
          expect({ code, err }).toEqual({ code: 0, err: expect.not.stringContaining("error") });
          const rounds = dtype === "bf16" && !stored.startsWith("bf16");
          const [type] = stored.replace("fp", "f").split(",");
          const told = `notice: bf16 rounds 20 of 20 tensors, which are in ${type} in `;
          expect(err.includes("notice"), err).toBe(rounds);
          if (rounds) expect(err).toContain(told);
          const parameters = [...tensorShapes(spec).values()].reduce((all, shape) => all + sizeOf(shape), 0);
          expect(JSON.parse(out)).toMatchObject({ output: to, base: from, dtype, scale, parameters });
          const got = tensorsOf(to, spec);
          for (const [name, values] of want) {
            const right = dtype === "fp32" ? values : rounded(values);
            const worst = values.reduce((most, _, i) => Math.max(most, Math.abs(right[i]! - got.get(name)![i]!)), 0);
            // f32 may be rounded once more by hand; in bf16 that may fall to the other neighbour
            expect(worst, name).toBeLessThan(dtype === "fp32" ? 1e-6 : 1e-2);
            if (!name.includes("_proj")) expect(worst, name).toBe(0);
          }
        }
      });

  test("has the base's other files, its config with the type that is stored, and no tensor that the base has not", async () => {
    const base = at("furnished");
    cpSync(place.model, base, { recursive: true });
    const config = { ...json(base, "config.json"), torch_dtype: "float16", dtype: "float16", own: [1, "é"] };
    writeFileSync(join(base, "config.json"), JSON.stringify(config));
    const other = {
      "generation_config.json": `{"eos_token_id":256}`,
      "merges.txt": "a b\n",
      LICENSE: "free",
      "chat_template.jinja": "{{ x }}",
      "additional_chat_templates/tool_use.jinja": "{{ y }}",
    };
    mkdirSync(join(base, "additional_chat_templates"));
    for (const [name, text] of Object.entries(other)) writeFileSync(join(base, name), text);
    symlinkSync(join(base, "merges.txt"), join(base, "vocab.txt")); // as in the hub's cache
    for (const name of ["README.md", "pytorch_model.bin", ".hidden"]) writeFileSync(join(base, name), "not this");
    mkdirSync(join(base, "original"));
    const to = at("furnished-merged");
    mkdirSync(to); // empty
    const { code } = await place.mlora("export", writeAdapter("adapter-furnished"), "--base", base, "--output", to);
    expect(code).toBe(0);
    const tokenizer = ["tokenizer.json", "tokenizer_config.json"];
    const files = readdirSync(to, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    expect(files.map(({ parentPath, name }) => relative(to, join(parentPath, name))).sort()).toEqual(
      ["config.json", "model.safetensors", "vocab.txt", ...tokenizer, ...Object.keys(other)].sort(),
    );
    for (const name of [...tokenizer, ...Object.keys(other), "vocab.txt"])
      expect(readFileSync(join(to, name), "utf8")).toBe(readFileSync(join(base, name), "utf8"));
    expect(json(to, "config.json")).toEqual({ ...config, torch_dtype: "bfloat16", dtype: "bfloat16" });
    const header = readFileSync(join(to, "model.safetensors"));
    const names = Object.keys(JSON.parse(header.subarray(8, 8 + Number(header.readBigUInt64LE(0))).toString()));
    expect(names.sort()).toEqual(["__metadata__", ...tensorShapes(spec).keys()].sort()); // tied: no lm_head
    expect(partsOf(to)).toEqual([]);
  });

  test("is the same in many files", async () => {
    const adapter = writeAdapter("adapter-shards");
    const [one, many] = [at("one-file"), at("many-files")];
    expect((await place.mlora("export", adapter, "--output", one)).code).toBe(0);
    const { code, err } = await place.mlora("export", adapter, "--output", many, "--shard", "10KB");
    expect(code).toBe(0);
    const files = readdirSync(many)
      .filter((name) => name.endsWith(".safetensors"))
      .sort();
    expect(files.length).toBeGreaterThan(2);
    expect(files[0]).toBe(`model-00001-of-${`${files.length}`.padStart(5, "0")}.safetensors`);
    expect(err).toContain(`wrote file ${files.length} of ${files.length}: `);
    const index = json(many, "model.safetensors.index.json");
    expect(new Set(Object.values(index.weight_map))).toEqual(new Set(files));
    expect(index.metadata.total_size).toBe([...tensorShapes(spec).values()].reduce((all, shape) => all + 2 * sizeOf(shape), 0));
    expect(tensorsOf(many, spec)).toEqual(tensorsOf(one, spec));
  });

  test("that reads otherwise than it was computed is reported", () => {
    const adapter = readPeftAdapter(writeAdapter("adapter-damage"), spec);
    using base = openBaseModel(place.model, spec);
    const merge: Merge = { spec, base, adapter, dtype: "bf16" };
    const shards = shardsOf(merge, 1e9);
    const folder = at("damaged");
    mkdirSync(folder);
    writeShards([{ folder, shard: shards[0]!, merge }]);
    verifyMerged(folder, shards, merge);
    const path = join(folder, "model.safetensors");
    const bytes = readFileSync(path);
    for (const place of [bytes.length - 1, bytes.length - 20_001]) {
      const damaged = Buffer.from(bytes);
      damaged[place]! ^= 1;
      writeFileSync(path, damaged);
      expect(() => verifyMerged(folder, shards, merge)).toThrow(
        expect.objectContaining({
          code: "export.verify",
          exit: 1,
          message: expect.stringMatching(/model\.\S+ was written and/),
        }),
      );
    }
  });
});

describe("refused, with nothing written,", () => {
  const refused = async (args: readonly string[], ...texts: readonly string[]) => {
    const { code, err, out } = await place.mlora("export", ...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    for (const text of [...texts, "hint: "]) expect(err).toContain(text);
    expect(readdirSync(place.root).filter((name) => name.startsWith("refused"))).toEqual([]);
  };
  const adapter = writeAdapter("adapter-refused");
  const to = ["--output", "refused"];

  test("is a base model that is not there, or not a model", async () => {
    const lost = writeAdapter("adapter-lost", { baseModel: "org/model-7b" });
    await refused([lost, ...to], "error[export.base]", join(lost, "adapter_config.json"), "'org/model-7b'", "--base");
    await refused([adapter, ...to, "--base", "nowhere"], "error[export.base]", "--base nowhere");
    await refused([adapter, ...to, "--base", adapter], "error[export.base]", "no config.json");
  });

  test("is an output that holds something", async () => {
    const taken = at("taken");
    mkdirSync(taken);
    writeFileSync(join(taken, "notes.txt"), "mine");
    await refused([adapter, "--output", taken], "error[export.output]", `${taken} is not empty: it holds notes.txt`);
    expect(readdirSync(taken)).toEqual(["notes.txt"]);
    await refused([adapter, "--output", join(taken, "notes.txt")], "error[export.output]", "is no folder");
    await refused([adapter, "--output", at("file.gguf")], "error[export.output]", "file.gguf would be a folder", "--gguf f16");
    const before = readdirSync(place.model);
    await refused([adapter, "--output", place.model], "error[export.output]", "the base model's own folder");
    symlinkSync(place.model, at("alias"));
    await refused([adapter, "--output", at("alias")], "error[export.output]", "the base model's own folder");
    expect(readdirSync(place.model)).toEqual(before);
  });

  test("is an adapter of another model, a damaged one, or none", async () => {
    const other = writeAdapter("adapter-other", {}, { ...spec, layers: 3, intermediate: 64 });
    await refused([other, ...to], "error[peft.tensors]", "mlp.up_proj.lora_B.weight is [64,3], expected [48,3]", "--base");
    const short = writeAdapter("adapter-short");
    const path = join(short, "adapter_model.safetensors");
    truncateSync(path, readFileSync(path).length - 10);
    await refused([short, ...to], "error[safetensors.header]", path);
    await refused([place.model, ...to], "error[export.adapter]", `${place.model} has no adapter_config.json`);
    for (const no of [at("no"), path]) await refused([no, ...to], "error[export.adapter]", "is no folder");
    const run = at("output-of-two");
    mkdirSync(join(run, "sums"), { recursive: true });
    writeFileSync(join(run, "sums", "adapter_config.json"), "{}");
    await refused(
      [run, ...to],
      "error[export.adapter]",
      "hint: name one adapter: ",
      `${join("output-of-two", "sums")}; or give --all`,
    );
  });

  needs("disks")("is a disk", () => {
    test("that has too little room, before anything is written", async () => {
      using _disk = smallDisk(at("small"), 16);
      for (const output of ["model", "not/there/yet"])
        await refused([adapter, "--output", at(`small/${output}`)], "error[export.room]", "its disk has 16.00 KiB free");
      expect(readdirSync(at("small"))).toEqual([]);
    });
  });

  test("are flags that say nothing", async () => {
    await refused([adapter], "error[cli.flag]", "--output is missing");
    await refused([adapter, ...to, "--dtype", "fp8"], "error[cli.flag]", "--dtype is 'fp8'", "bf16, fp32");
    for (const size of ["0", "5 apples", "-1"])
      await refused([adapter, ...to, `--shard=${size}`], "error[cli.flag]", "--shard is");
  });
});

test("killed while it writes, it leaves nothing under the final name; the next one clears up", async () => {
  using made = new DisposableStack();
  const output = at("deep");
  const half = () => partsOf(output).some((part) => readdirSync(at(part)).some((name) => name.startsWith("model-00009")));
  const { args, of, ended } = await inTheMiddle(async (factor) => {
    const deep = made.use(new Workplace(24 * factor));
    const of = readModelSpec(deep.model);
    const adapter = writeAdapter(`adapter-${factor}`, { baseModel: deep.model }, of);
    const args = ["export", adapter, "--output", output, "--shard", "1"]; // a file for each tensor
    const running = place.start(args);
    await beforeItsEnd(running, "some of its files", half);
    running.kill("SIGKILL");
    const ended = await running.ended;
    if (ended.code !== 0) return { args, of, ended };
    rmSync(output, { recursive: true });
    return null;
  });
  expect([ended.code, ended.out]).toEqual([137, ""]);
  expect(existsSync(output)).toBe(false);
  expect(partsOf(output).length).toBe(1);
  const { code, err } = await place.mlora(...args);
  expect({ code, err }).toEqual({ code: 0, err: expect.not.stringContaining("error") });
  expect(partsOf(output)).toEqual([]);
  expect(tensorsOf(output, of).size).toBe(tensorShapes(of).size);
});

test("--all merges every adapter of a run that has ended, to the bytes of each alone, and reads the base once", async () => {
  const run = at("run");
  mkdirSync(run);
  const names = ["one", "two", "dora"];
  for (const name of names) {
    writeAdapter(`run-${name}`, name === "dora" ? { method: "dora" } : name === "two" ? { targets: ["q_proj"], rank: 5 } : {});
    cpSync(at(`run-${name}`), join(run, name), { recursive: true });
  }
  const outcome = (name: string, status: string) => ({
    ...{ name, status, message: null, steps: 1, tokens: 1, seconds: 1, before: null, after: null, firstLoss: 1, lastLoss: 1 },
    ...{ folder: join(run, name), made: { settings: "", data: "", model: "" } },
  });
  const ended = Object.fromEntries([...names.map((name) => [name, outcome(name, "done")]), ["bad", outcome("bad", "failed")]]);
  writeFileSync(join(run, "run.json"), JSON.stringify({ format: 1, adapters: ended }));
  const all = await place.mlora("export", run, "--all", "--output", at("all"), "--json");
  expect([all.code, all.err]).toEqual([0, expect.stringContaining("bad (failed)")]);
  expect(JSON.parse(all.out).length).toBe(3);
  expect(readdirSync(at("all")).sort()).toEqual(names.toSorted());
  for (const name of names) {
    expect((await place.mlora("export", join(run, name), "--output", at(`alone-${name}`))).code).toBe(0);
    for (const file of readdirSync(at(`alone-${name}`)))
      expect(readFileSync(join(at("all"), name, file)).equals(readFileSync(join(at(`alone-${name}`), file))), file).toBe(true);
  }
  using base = openBaseModel(place.model, spec);
  const reads: string[] = [];
  const counted = sharedBase({
    ...base,
    read: (name, into, from, as) => {
      reads.push(`${name} ${from}`);
      base.read(name, into, from, as);
    },
  });
  const files = ["one", "two"].map((name) => {
    const merge: Merge = { spec, base: counted, adapter: readPeftAdapter(join(run, name), spec), dtype: "f32" };
    return { folder: at(`shared-${name}`), shard: shardsOf(merge, 1e9)[0]!, merge };
  });
  writeShards(files);
  expect(new Set(reads).size).toBe(reads.length);
  const gguf = await place.mlora("export", run, "--all", "--output", at("ggufs"), "--gguf", "adapter");
  expect([gguf.code, gguf.err]).toEqual([2, expect.stringContaining("is a dora")]);
  expect((await place.mlora("export", run, "--all", "--output", at("ggufs2"), "--gguf", "q8_0")).code).toBe(0);
  expect(readdirSync(at("ggufs2")).sort()).toEqual(names.map((name) => `${name}.gguf`).sort());
});

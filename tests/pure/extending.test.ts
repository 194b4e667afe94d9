// docs/extending.md, as a contributor follows it: the examples of its sections are put into a copy of the sources, which must
// compile and work.
//
// All in one copy, which is compiled once: a section's files name those of no other section, so that each would compile alone.

import { afterAll, expect, test } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { breaches } from "../../scripts/imports.ts";
import { CopyOfSources, ROOT, shownIn } from "../helpers/extending.ts";

const copy = new CopyOfSources();
afterAll(() => copy[Symbol.dispose]());

const SECTIONS = {
  objective: shownIn("An objective"),
  kernel: shownIn("A kernel"),
  family: shownIn("A model family"),
  command: shownIn("A command"),
};

const KERNEL_TRIAL = `import { DryGpu } from "./scripts/dry-gpu.ts";
import { CpuDevice } from "./src/device/cpu.ts";
import type { Tensor } from "./src/device/device.ts";
import { parseManifest } from "./src/device/cuda/manifest.ts";
import { titleOf } from "./src/device/cuda/variants.ts";
import { rowsScale } from "./src/ops/scale.ts";
const rows = parseManifest(await Bun.stdin.text());
const launched = new Set<string>();
for (const compute of ["bf16", "f32"] as const) {
  const gpu = new DryGpu(compute, { major: 9, minor: 0 }, rows, (row) => launched.add(titleOf(row)));
  const x: Tensor = { ptr: 0, dtype: compute, shape: [4, 8] };
  rowsScale(gpu, { x, scale: { ptr: 0, dtype: "f32", shape: [4] }, y: x });
}
using cpu = new CpuDevice(2);
const tensor = (...shape: number[]): Tensor => ({ ptr: cpu.allocate(64, "a test"), dtype: "f32", shape });
const [x, scale] = [tensor(2, 8), tensor(2)];
cpu.write(x, Float32Array.from({ length: 16 }, (_, i) => i));
cpu.write(scale, new Float32Array([2, -1]));
rowsScale(cpu, { x, scale, y: x });
console.log(JSON.stringify([[...launched], [...new Float32Array((await cpu.read(x)).buffer)]]));`;

test("each example is of the files that its section names, and together they compile", async () => {
  expect(Object.values(SECTIONS).map((files) => [...files.keys()])).toEqual([
    ["src/objectives/margin.ts"],
    ["src/ops/scale.ts", "ffi/native/scale.c", "kernels/triton/scale.py"],
    ["src/families/seed-oss.ts"],
    ["src/cli/layers.ts", "src/cli/commands.ts", "src/main.ts"],
  ]);
  addObjective();
  addKernel();
  const before = copy.touched();
  addFamily();
  expect(copy.touched().filter((path) => !before.includes(path))).toEqual(["families/registry.ts", "families/seed-oss.ts"]);
  addCommand();
  copy.edit("tsconfig.json", '"include": [', '"include": ["scripts", "try-kernel.ts", ');
  copy.write("try-kernel.ts", KERNEL_TRIAL);
  expect(await copy.check()).toEqual([0, ""]);
  const own = Object.values(SECTIONS).map((files) => [...files].filter(([path]) => !isOurs(path)));
  for (const [i, files] of own.entries())
    for (const [path] of files)
      for (const text of own.toSpliced(i, 1).flatMap((others) => others.map(([, text]) => text)))
        expect(text).not.toContain(basename(path).replace(/\.\w+$/, "."));
});

/** Whether a file was there before. */
const isOurs = (path: string): boolean => existsSync(join(ROOT, path));

function addObjective(): void {
  for (const [path, code] of SECTIONS.objective) copy.write(path, code);
  const registry = "src/objectives/registry.ts";
  copy.edit(registry, "const OBJECTIVES = { sft,", "const OBJECTIVES = { margin, sft,");
  copy.edit(
    registry,
    'import { kto } from "./kto.ts";',
    'import { kto } from "./kto.ts";\nimport { margin } from "./margin.ts";',
  );
}

test("an objective", async () => {
  const recipe = `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "d.jsonl"
objective = { name = "margin", least_margin = 3 }`;
  copy.write(
    "try.ts",
    `import { parseRecipe, formatRecipe } from "./src/recipe/load.ts";
import { preferenceLoss } from "./src/objectives/registry.ts";
const recipe = parseRecipe(${JSON.stringify(recipe)}, "/r.toml");
const { objective } = parseRecipe(formatRecipe(recipe), "/r.toml").adapters[0]!;
const scored = (logp: number) => ({ logp, targets: 2 });
const row = { own: scored(-4), other: scored(-5), reference: null, label: true, similar: null };
console.log(JSON.stringify([objective, preferenceLoss(objective as never, [row], { rows: 2, tokens: 4 })]));`,
  );
  const [code, out] = await copy.run(process.execPath, "try.ts");
  expect(code).toBe(0);
  expect(JSON.parse(out)).toEqual([
    { name: "margin", leastMargin: 3 },
    [{ loss: 1, gradients: [-0.5, 0.5], rewards: [-4, -5] }],
  ]);
});

function addKernel(): void {
  for (const path of ["kernels/triton", "scripts/dry-gpu.ts"]) copy.take(path);
  for (const [path, code] of SECTIONS.kernel) copy.write(path, code.replace(/^.*\n/, ""));
}

/** Names that a compiled library has for others. */
async function namesIn(path: string): Promise<string[]> {
  const [code, out] = await copy.run("nm", "--dynamic", "--defined-only", "--format=just-symbols", path);
  expect(code).toBe(0);
  return out.split("\n").filter((name) => name !== "" && !name.startsWith("_"));
}

test("a kernel", async () => {
  // Its C alone: the rest is as it was, so it is linked with the library that there is, which has no name that it has.
  copy.ownLibrary();
  const gcc = [process.env["CC"] ?? "gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-march=x86-64-v3", "-pthread"];
  const [ours, rest] = ["ffi/build/libmlora.so", join(ROOT, "ffi/build/libmlora.so")];
  expect(await copy.run(...gcc, "-shared", "-fPIC", "-o", ours, "ffi/native/scale.c", rest, "-lm")).toEqual([0, ""]);
  const [its, others] = [await namesIn(ours), new Set(await namesIn(rest))];
  expect(its.length).toBeGreaterThan(0);
  expect(its.filter((name) => others.has(name))).toEqual([]);
  const python = join(ROOT, ".venv/bin/python");
  const [listed, rows] = await copy.run(python, "-B", "kernels/triton/compile.py", "--rows");
  expect(listed).toBe(0);
  copy.write("rows.json", rows);
  const [code, out] = await copy.run("bash", "-c", `"${process.execPath}" try-kernel.ts <rows.json`);
  expect(code).toBe(0);
  expect(JSON.parse(out)).toEqual([
    ["rows_scale bf16 sm_80 BLOCK=1024", "rows_scale fp32 sm_80 BLOCK=1024"],
    [0, 2, 4, 6, 8, 10, 12, 14, -8, -9, -10, -11, -12, -13, -14, -15],
  ]);
});

function addFamily(): void {
  for (const [path, code] of SECTIONS.family) copy.write(path, code);
  const registry = "src/families/registry.ts";
  copy.edit(registry, "\n} as const satisfies", "\n  seed_oss: seedOss,\n} as const satisfies");
  copy.edit(registry, 'from "./qwen3.ts";', 'from "./qwen3.ts";\nimport { seedOss } from "./seed-oss.ts";');
}

test("a model family", async () => {
  // A run on a tiny random model of each: its tensors are expected of the files, and one step moves every B away from 0.
  copy.write(
    "try.ts",
    `import { openSafetensors } from "./src/files/safetensors.ts";
import { writeTinyModel } from "./tests/helpers/model.ts";
const [architecture, written] = process.argv.slice(2);
if (written === "model") writeTinyModel("model", 2, { architectures: [architecture], head_dim: 8 });
const file = openSafetensors(written === "model" ? "model/model.safetensors" : "out/a/adapter_model.safetensors");
const sum = (name: string) => {
  const raw = new Uint8Array(file.tensors.get(name)!.bytes);
  file.readInto(name, raw);
  return new Float32Array(raw.buffer).reduce((all, value) => all + Math.abs(value), 0);
};
const names = [...file.tensors.keys()].filter((name) => /layers.1.*(_proj.bias|_proj.weight|lora_B.weight)/.test(name));
console.log(JSON.stringify(names.sort().map((name) => [name.replace(/^.*layers.1./, ""), written === "model" || sum(name) > 0])));`,
  );
  copy.write("rows.jsonl", '{ "prompt": "1 + 1 = ", "completion": "2" }\n'.repeat(2));
  const run = '[model]\npath = "model"\n[run]\noutput = "out"\ndevice = "cpu"\n';
  copy.write("recipe.toml", `${run}[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\n`);
  const shown = async (architecture: string, which: "model" | "adapter") => {
    const [, out] = await copy.run(process.execPath, "try.ts", architecture, which);
    return Object.fromEntries(JSON.parse(out) as [string, boolean][]);
  };
  const mlp = ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"];
  const attention = ["self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"];
  const [k, , q, v] = attention;
  for (const [architecture, linears, biases] of [
    ["SeedOssForCausalLM", [...mlp, ...attention], [k, q, v]],
    ["Phi3ForCausalLM", ["mlp.down_proj", "mlp.gate_up_proj", "self_attn.o_proj", "self_attn.qkv_proj"], []],
  ] as const) {
    const tensors = [...linears.map((name) => `${name}.weight`), ...biases.map((name) => `${name}.bias`)];
    expect(await shown(architecture, "model")).toEqual(Object.fromEntries(tensors.map((name) => [name, true])));
    expect((await copy.run(process.execPath, "src/main.ts", "run", "recipe.toml"))[0]).toBe(0);
    expect(await shown(architecture, "adapter")).toEqual(
      Object.fromEntries(linears.map((name) => [`${name}.lora_B.weight`, true])),
    );
    rmSync(copy.at("out"), { recursive: true });
  }
});

function addCommand(): void {
  const shown = SECTIONS.command;
  copy.write("src/cli/layers.ts", shown.get("src/cli/layers.ts")!);
  const [row, call] = ["src/cli/commands.ts", "src/main.ts"].map((path) => shown.get(path)!.replace(/^.*\n/, ""));
  copy.edit("src/cli/commands.ts", "  doctor: {", `${row}  doctor: {`);
  copy.edit("src/main.ts", "  doctor: async", `${call}  doctor: async`);
}

test("a command", async () => {
  for (const [path, text] of SECTIONS.command) expect(breaches({ path, text })).toEqual([]);
  const model = join(ROOT, "tests", "golden", "peft", "llama", "model");
  const head = `[model]\npath = "${model}"\n[run]\noutput = "out"\n`;
  copy.write("r.toml", `${head}[[adapter]]\nname = "a"\ndata = "rows.jsonl"\n`);
  expect(await copy.run(process.execPath, "src/main.ts", "layers", "r.toml", "--json")).toEqual([0, '{"layers":2}\n']);
  expect((await copy.run(process.execPath, "src/main.ts", "--help"))[1]).toContain(
    "Print how many layers the base model of a recipe has",
  );
});

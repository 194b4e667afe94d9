// docs/extending.md, as a contributor follows it: the example of a section is put into a copy of the sources, which must
// compile and work.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { CopyOfSources, ROOT, shownIn } from "../helpers/extending.ts";

test("an objective", async () => {
  using copy = new CopyOfSources();
  const files = shownIn("An objective");
  expect([...files.keys()]).toEqual(["src/objectives/margin.ts"]);
  for (const [path, code] of files) copy.write(path, code);
  const registry = "src/objectives/registry.ts";
  copy.edit(registry, "const OBJECTIVES = { sft,", "const OBJECTIVES = { margin, sft,");
  copy.edit(
    registry,
    'import { kto } from "./kto.ts";',
    'import { kto } from "./kto.ts";\nimport { margin } from "./margin.ts";',
  );
  expect(await copy.check()).toEqual([0, ""]);
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
}, 120_000);

test("a kernel", async () => {
  using copy = new CopyOfSources();
  for (const path of ["kernels/triton", "scripts/dry-gpu.ts"]) copy.take(path);
  const shown = shownIn("A kernel");
  const added = [...shown].filter(([, code]) => !/^\/\/ in /.test(code));
  expect(added.map(([path]) => path)).toEqual([
    "src/ops/scale.ts",
    "ffi/native/scale.c",
    "kernels/triton/scale.py",
    "kernels/triton/scale_variants.py",
    "src/device/cuda/scale.ts",
  ]);
  expect(shown.size - added.length).toBe(4);
  for (const [path, code] of added) copy.write(path, code.replace(/^.*\n/, ""));
  const line = (path: string, before: string): void =>
    copy.edit(path, before, `${shown.get(path)!.replace(/^.*\n/, "")}${before}`);
  line("src/device/kernels.ts", "  /** h = silu(gate) * up");
  line("ffi/native.ts", "  swiglu_forward: {");
  line("src/device/cpu.ts", "    swiglu_forward: (");
  line("src/device/cuda/families.ts", "  ...linearFamily(gpu),");
  copy.edit(
    "src/device/cuda/families.ts",
    "import { veraFamily",
    'import { scaleFamily } from "./scale.ts";\nimport { veraFamily',
  );
  copy.edit("tsconfig.json", '"include": [', '"include": ["scripts", "try.ts", ');
  copy.write(
    "try.ts",
    `import { DryGpu } from "./scripts/dry-gpu.ts";
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
console.log(JSON.stringify([...launched]));`,
  );
  expect(await copy.check()).toEqual([0, ""]);
  const gcc = [process.env["CC"] ?? "gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"];
  expect(await copy.run(...gcc, "ffi/native/scale.c")).toEqual([0, ""]);
  const python = join(ROOT, ".venv/bin/python");
  expect(await copy.run(python, "-c", "import ast; ast.parse(open('kernels/triton/scale.py').read())")).toEqual([0, ""]);
  const [listed, rows] = await copy.run(python, "-B", "kernels/triton/compile.py", "--rows");
  expect(listed).toBe(0);
  copy.write("rows.json", rows);
  expect(await copy.run("bash", "-c", `"${process.execPath}" try.ts <rows.json`)).toEqual([
    0,
    '["rows_scale bf16 sm_80 BLOCK=1024","rows_scale fp32 sm_80 BLOCK=1024"]\n',
  ]);
}, 120_000);

test("a model family", async () => {
  using copy = new CopyOfSources();
  const files = shownIn("A model family");
  expect([...files.keys()]).toEqual(["src/families/seed-oss.ts"]);
  for (const [path, code] of files) copy.write(path, code);
  const registry = "src/families/registry.ts";
  copy.edit(registry, "qwen3 } as const", "qwen3, seed_oss: seedOss } as const");
  copy.edit(registry, 'from "./qwen3.ts";', 'from "./qwen3.ts";\nimport { seedOss } from "./seed-oss.ts";');
  expect(copy.touched()).toEqual(["families/registry.ts", "families/seed-oss.ts"]);
  expect(await copy.check()).toEqual([0, ""]);

  // A run on a tiny random model: its biases are in the files, and one step moves every B away from 0.
  const config = { architectures: ["SeedOssForCausalLM"], model_type: "seed_oss", head_dim: 8 };
  copy.write(
    "try.ts",
    `import { openSafetensors } from "./src/files/safetensors.ts";
import { writeTinyModel } from "./tests/helpers/model.ts";
if (process.argv[2] === "model") writeTinyModel("model", 2, ${JSON.stringify(config)});
const file = openSafetensors(process.argv[2] === "model" ? "model/model.safetensors" : "out/a/adapter_model.safetensors");
const sum = (name: string) => {
  const raw = new Uint8Array(file.tensors.get(name)!.bytes);
  file.readInto(name, raw);
  return new Float32Array(raw.buffer).reduce((all, value) => all + Math.abs(value), 0);
};
const names = [...file.tensors.keys()].filter((name) => /bias|lora_B/.test(name)).sort();
console.log(JSON.stringify(process.argv[2] === "model" ? names : names.map(sum)));`,
  );
  copy.write("rows.jsonl", '{ "prompt": "1 + 1 = ", "completion": "2" }\n'.repeat(2));
  copy.write(
    "recipe.toml",
    '[model]\npath = "model"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\n',
  );
  const biases = ["k_proj", "q_proj", "v_proj"].map((name) => `self_attn.${name}.bias`);
  const [, found] = await copy.run(process.execPath, "try.ts", "model");
  expect(JSON.parse(found)).toEqual([0, 1].flatMap((layer) => biases.map((name) => `model.layers.${layer}.${name}`)));
  expect((await copy.run(process.execPath, "src/main.ts", "run", "recipe.toml"))[0]).toBe(0);
  const sums = JSON.parse((await copy.run(process.execPath, "try.ts", "adapter"))[1]);
  expect(sums).toHaveLength(14);
  for (const sum of sums) expect(sum).toBeGreaterThan(0);
}, 120_000);

test("a command", async () => {
  using copy = new CopyOfSources();
  const shown = shownIn("A command");
  expect([...shown.keys()]).toEqual(["src/cli/layers.ts", "src/main.ts"]);
  copy.write("src/cli/layers.ts", shown.get("src/cli/layers.ts")!);
  const declared = shown.get("src/main.ts")!.replace(/^.*\n/, "");
  copy.edit("src/main.ts", "  const remote = () =>", `${declared}  const remote = () =>`);
  expect(await copy.check()).toEqual([0, ""]);
  const model = join(ROOT, "tests", "golden", "peft", "llama", "model");
  expect(await copy.run(process.execPath, "src/main.ts", "layers", model, "--json")).toEqual([0, '{"layers":2}\n']);
  expect((await copy.run(process.execPath, "src/main.ts", "--help"))[1]).toContain("Say how many layers a base model has");
}, 120_000);

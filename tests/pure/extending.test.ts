// docs/extending.md, as a contributor follows it: the example of a section is put into a copy of the sources, which must
// compile and work.

import { afterAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dir, "..", "..");
const PAGE = readFileSync(join(ROOT, "docs", "extending.md"), "utf8");
const copies: string[] = [];
afterAll(() => {
  for (const copy of copies) rmSync(copy, { recursive: true });
});

/** The code that a section shows, by the path in its first line. */
function shownIn(section: string): Map<string, string> {
  const text = PAGE.split(/^## /m).find((part) => part.startsWith(section))!;
  const blocks = [...text.matchAll(/^( *)```ts\n([\s\S]*?)^ *```$/gm)].map(([, indent, code]) =>
    code!.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
  );
  return new Map(blocks.map((code) => [/^\/\/ (?:in )?(\S+)\n/.exec(code)![1]!, code]));
}

function copyOfSources(): string {
  const copy = mkdtempSync(join(tmpdir(), "mlora-extending-"));
  copies.push(copy);
  for (const name of ["src", "ffi", "package.json", "tsconfig.json"])
    cpSync(join(ROOT, name), join(copy, name), {
      recursive: true,
      filter: (path) => !path.startsWith(join(ROOT, "ffi", "build")),
    });
  symlinkSync(join(ROOT, "node_modules"), join(copy, "node_modules"));
  edit(join(copy, "tsconfig.json"), '"include": [', '"include": ["src", "ffi"], "unused": [');
  return copy;
}

function edit(path: string, from: string, to: string): void {
  const text = readFileSync(path, "utf8");
  expect(text).toContain(from);
  writeFileSync(
    path,
    text.replace(from, () => to),
  );
}

async function run(cwd: string, ...command: string[]): Promise<[number, string]> {
  const { exited, stdout } = Bun.spawn(command, { cwd, stdout: "pipe", stderr: "pipe" });
  return [await exited, await new Response(stdout).text()];
}

test("an objective", async () => {
  const copy = copyOfSources();
  const files = shownIn("An objective");
  expect([...files.keys()]).toEqual(["src/objectives/margin.ts"]);
  for (const [path, code] of files) writeFileSync(join(copy, path), code);
  const registry = join(copy, "src", "objectives", "registry.ts");
  edit(registry, "const OBJECTIVES = { sft,", "const OBJECTIVES = { margin, sft,");
  edit(registry, 'import { kto } from "./kto.ts";', 'import { kto } from "./kto.ts";\nimport { margin } from "./margin.ts";');
  expect(await run(copy, "node_modules/.bin/tsc", "-p", ".")).toEqual([0, ""]);
  const recipe = `[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "d.jsonl"
objective = { name = "margin", least_margin = 3 }`;
  writeFileSync(
    join(copy, "try.ts"),
    `import { parseRecipe, formatRecipe } from "./src/recipe/load.ts";
import { preferenceLoss } from "./src/objectives/registry.ts";
const recipe = parseRecipe(${JSON.stringify(recipe)}, "/r.toml");
const { objective } = parseRecipe(formatRecipe(recipe), "/r.toml").adapters[0]!;
const scored = (logp: number) => ({ logp, targets: 2 });
const row = { own: scored(-4), other: scored(-5), reference: null, label: true, similar: null };
console.log(JSON.stringify([objective, preferenceLoss(objective as never, [row], { rows: 2, tokens: 4 })]));`,
  );
  const [code, out] = await run(copy, process.execPath, "try.ts");
  expect(code).toBe(0);
  expect(JSON.parse(out)).toEqual([
    { name: "margin", leastMargin: 3 },
    [{ loss: 1, gradients: [-0.5, 0.5], rewards: [-4, -5] }],
  ]);
}, 120_000);

test("a model family", async () => {
  const copy = copyOfSources();
  const files = shownIn("A model family");
  expect([...files.keys()]).toEqual(["src/families/seed-oss.ts"]);
  for (const [path, code] of files) writeFileSync(join(copy, path), code);
  const registry = join(copy, "src", "families", "registry.ts");
  edit(registry, "qwen3 } as const", "qwen3, seed_oss: seedOss } as const");
  edit(
    registry,
    'import { qwen3 } from "./qwen3.ts";',
    'import { qwen3 } from "./qwen3.ts";\nimport { seedOss } from "./seed-oss.ts";',
  );
  expect(await run(copy, "node_modules/.bin/tsc", "-p", ".")).toEqual([0, ""]);
  // A run on a tiny random model: its biases are found in the files, and one step moves every B away from 0.
  symlinkSync(join(ROOT, "ffi", "build"), join(copy, "ffi", "build"));
  cpSync(join(ROOT, "tests", "helpers"), join(copy, "tests", "helpers"), { recursive: true });
  const config = { architectures: ["SeedOssForCausalLM"], model_type: "seed_oss", head_dim: 8 };
  const row = JSON.stringify({ prompt: "1 + 1 = ", completion: "2" });
  writeFileSync(join(copy, "rows.jsonl"), `${row}\n${row}\n`);
  writeFileSync(
    join(copy, "recipe.toml"),
    '[model]\npath = "model"\n[run]\noutput = "out"\ndevice = "cpu"\n[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nsteps = 1\n',
  );
  writeFileSync(
    join(copy, "try.ts"),
    `import { writeTinyModel } from "./tests/helpers/model.ts";
import { openSafetensors } from "./src/files/safetensors.ts";
if (process.argv[2] === "model") writeTinyModel("model", 2, ${JSON.stringify(config)});
const file = openSafetensors(process.argv[2] === "model" ? "model/model.safetensors" : "out/a/adapter_model.safetensors");
const sum = (name: string) => {
  const raw = new Uint8Array(file.tensors.get(name)!.bytes);
  file.readInto(name, raw);
  return new Float32Array(raw.buffer).reduce((all, value) => all + Math.abs(value), 0);
};
const names = [...file.tensors.keys()].filter((name) => /bias|lora_B/.test(name));
console.log(JSON.stringify(process.argv[2] === "model" ? names : names.map(sum)));`,
  );
  const biases = ["q_proj", "k_proj", "v_proj"].map((name) => `self_attn.${name}.bias`);
  const [, found] = await run(copy, process.execPath, "try.ts", "model");
  expect(JSON.parse(found).sort()).toEqual([0, 1].flatMap((i) => biases.map((name) => `model.layers.${i}.${name}`)).sort());
  expect((await run(copy, process.execPath, "src/main.ts", "run", "recipe.toml"))[0]).toBe(0);
  const [, sums] = await run(copy, process.execPath, "try.ts", "adapter");
  expect(JSON.parse(sums)).toHaveLength(14);
  for (const sum of JSON.parse(sums)) expect(sum).toBeGreaterThan(0);
}, 120_000);

test("a command", async () => {
  const copy = copyOfSources();
  const shown = shownIn("A command");
  expect([...shown.keys()]).toEqual(["src/cli/layers.ts", "src/main.ts"]);
  writeFileSync(join(copy, "src", "cli", "layers.ts"), shown.get("src/cli/layers.ts")!);
  const declared = shown.get("src/main.ts")!.replace(/^.*\n/, "");
  edit(join(copy, "src", "main.ts"), "  const remote = () =>", `${declared}  const remote = () =>`);
  expect(await run(copy, "node_modules/.bin/tsc", "-p", ".")).toEqual([0, ""]);
  const model = join(ROOT, "tests", "golden", "peft", "llama", "model");
  expect(await run(copy, process.execPath, "src/main.ts", "layers", model, "--json")).toEqual([0, '{"layers":2}\n']);
  expect((await run(copy, process.execPath, "src/main.ts", "--help"))[1]).toContain("Say how many layers a base model has");
}, 120_000);

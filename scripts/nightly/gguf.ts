// What `mlora export --gguf` writes, read by llama.cpp itself: logits, greedy tokens, tokens of texts, and blocks.
//
//   bun scripts/nightly/gguf.ts [--python PATH] [--only NAME]
//
// Without a Python that has gguf-requirements.txt a virtual environment is made for it, and llama.cpp compiled: minutes. The
// tiny models of the goldens come to PEFT's logits, merged and as base with LoRA; SmolLM2-135M-Instruct to the tokens of
// transformers; what is quantised is to the byte what llama-quantize makes of the same values.

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { sizeOf } from "../../src/base/shape.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { linearShape } from "../../src/families/linears.ts";
import { familyOf } from "../../src/families/registry.ts";
import { readModelConfig, readModelSpec } from "../../src/files/config.ts";
import { GGUF_TYPES } from "../../src/files/gguf/types.ts";
import { writePeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors, writeSafetensors } from "../../src/files/safetensors.ts";
import { loadFamilyGolden } from "../../tests/helpers/family-golden.ts";
import { lossOf } from "../../tests/helpers/formats.ts";
import { type GoldenModel, loadGolden, readTensors } from "../../tests/helpers/golden.ts";
import { goldenFolder, goldenKinds } from "../../tests/helpers/golden-tokenizers.ts";
import { writeSmallTokenizer, writeTinyModel } from "../../tests/helpers/model.ts";
import { Workplace } from "../../tests/helpers/program.ts";
import { greedy, SMOLLM, writeGoldenAdapter } from "../../tests/helpers/smollm.ts";
import { stringsOf } from "../../tests/helpers/tokenizer-strings.ts";

/** Of f32 weights and caches: sums in another order alone. */
const CLOSE = 2e-3;
const HERE = import.meta.dir;

const { values } = parseArgs({ options: { python: { type: "string" }, only: { type: "string" } } });
using place = new Workplace();
const python = values.python ?? (await makePython());
const llama = Bun.spawn([python, join(HERE, "llama.py")], { stdin: "pipe", stdout: "pipe", stderr: "ignore" });
const lines = llama.stdout.pipeThrough(new TextDecoderStream()).getReader();
let rest = "";
let failed = 0;

async function makePython(): Promise<string> {
  const folder = join(place.root, "venv");
  const pip = join(folder, "bin", "pip");
  const off = ["LLAMA_BUILD_TOOLS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP"];
  const flags = [...off, "LLAVA_BUILD"].map((name) => `-D${name}=OFF`).join(" ");
  for (const command of [
    ["python3", "-m", "venv", folder],
    [pip, "install", "--quiet", "-r", join(HERE, "gguf-requirements.txt")],
  ]) {
    const child = Bun.spawn(command, { env: { ...process.env, CMAKE_ARGS: flags }, stdout: "ignore", stderr: "inherit" });
    if ((await child.exited) !== 0) throw new Error(`${command.join(" ")} failed`);
  }
  return join(folder, "bin", "python");
}

/** Asks llama.cpp. */
async function ask<T>(kind: string, more: object): Promise<T> {
  llama.stdin.write(`${JSON.stringify({ kind, ...more })}\n`);
  llama.stdin.flush();
  while (!rest.includes("\n")) {
    const { value, done } = await lines.read();
    if (done) throw new Error("llama.cpp ended");
    rest += value;
  }
  const end = rest.indexOf("\n");
  const { answer, error } = JSON.parse(rest.slice(0, end));
  rest = rest.slice(end + 1);
  if (error !== undefined) throw new Error(error);
  return answer as T;
}

function report(what: string, isRight: boolean, found: string): void {
  if (!isRight) failed++;
  console.log(`${isRight ? "ok   " : "WRONG"} ${what}: ${found}`);
}

async function exported(adapter: string, base: string, name: string, type: string): Promise<string> {
  const output = join(place.root, `${name}.gguf`);
  rmSync(output, { force: true });
  const { code, err } = await place.mlora("export", adapter, "--base", base, "--gguf", type, "--output", output);
  if (code !== 0) throw new Error(err);
  return output;
}

/** An adapter like that in `folder` that changes nothing. */
function neutral(folder: string, to: string): string {
  mkdirSync(to, { recursive: true });
  writeFileSync(join(to, "adapter_config.json"), readFileSync(join(folder, "adapter_config.json")));
  using file = openSafetensors(join(folder, "adapter_model.safetensors"));
  const values = readTensors(join(folder, "adapter_model.safetensors"));
  const tensors = [...file.tensors].map(([name, { shape }]) => {
    const data = name.includes("lora_B") ? new Float32Array(sizeOf(shape)) : values(name);
    return { name, dtype: "f32" as const, shape, data };
  });
  writeSafetensors(join(to, "adapter_model.safetensors"), tensors);
  return to;
}

const farthest = (found: readonly number[], wanted: Float32Array): number =>
  found.length <= wanted.length ? Math.max(...found.map((value, i) => Math.abs(value - wanted[i]!))) : Number.NaN;

type Case = {
  readonly name: string;
  readonly model: string;
  readonly adapter: string;
  readonly probe: readonly number[];
  readonly base: Float32Array;
  readonly trained: Float32Array;
};

/** Merged, and base and LoRA as two files, against PEFT's logits. */
async function compare({ name, model, adapter, probe, base, trained }: Case): Promise<void> {
  writeSmallTokenizer(model, readModelSpec(model).vocab);
  const spec = readModelSpec(model);
  // llama.cpp has no windows in these; in those of Gemma and OLMo they are compared
  const window = Math.min(...spec.windows.flatMap((size) => (size === null ? [] : [size])));
  const length = familyOf(spec).gguf?.hasWindows ? probe.length : Math.min(probe.length, window);
  const ids = probe.slice(0, length);
  const files = {
    merged: await exported(adapter, model, `${name}-merged`, "f32"),
    base: await exported(neutral(adapter, join(place.root, `${name}-neutral`)), model, `${name}-base`, "f32"),
    lora: await exported(adapter, model, `${name}-lora`, "adapter"),
  };
  const found = async (more: object) => ask<number[]>("logits", { ids, ...more });
  const off = {
    base: farthest(await found({ path: files.base }), base),
    merged: farthest(await found({ path: files.merged }), trained),
    lora: farthest(await found({ path: files.base, lora: files.lora }), trained),
  };
  const shown = Object.entries(off).map(([which, by]) => `${which} ${by.toExponential(1)}`);
  report(
    `${name}, PEFT's logits`,
    Object.values(off).every((by) => by < CLOSE),
    shown.join(", "),
  );
}

const attempt = async (name: string, run: () => Promise<void>): Promise<void> => {
  if (values.only !== undefined && values.only !== name) return;
  try {
    await run();
  } catch (error) {
    report(name, false, `${error instanceof Error ? error.message : error}`);
  }
};

/**
 * A golden's model with what llama.cpp takes for granted, which its own config has otherwise: mlora's loss. ggml has a table of
 * gelu in half precision.
 */
async function compareLoss(
  name: string,
  model: string,
  adapter: string,
  probe: readonly number[],
  more: object,
): Promise<void> {
  const path = join(model, "config.json");
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...more }));
  const { vocab } = readModelSpec(model);
  writeSmallTokenizer(model, vocab);
  const file = await exported(neutral(adapter, join(place.root, `${name}-neutral`)), model, `${name}-own`, "f32");
  const rows = await ask<number[]>("logits", { ids: probe, path: file });
  const losses = probe.slice(1).map((id, at) => {
    const row = rows.slice(at * vocab, (at + 1) * vocab);
    return Math.log(row.reduce((sum, value) => sum + Math.exp(value), 0)) - row[id]!;
  });
  const found = losses.reduce((a, b) => a + b) / losses.length;
  const own = await lossOf(model, { ids: probe, loss: 0, tensors: {} }, "cpu");
  report(`${name}, mlora's loss`, Math.abs(found / own - 1) < 1e-4, `${found} and ${own}`);
}

for (const name of ["llama", "mistral", "qwen2", "qwen3"] as readonly GoldenModel[])
  await attempt(name, async () => {
    const { model, adapters, probe, logits } = loadGolden(name);
    const folder = join(place.root, `${name}-model`);
    Bun.spawnSync(["cp", "-r", model, folder]);
    const { final: adapter, logits: trained } = adapters[0]!;
    await compare({ name, model: folder, adapter, probe: [...probe], base: logits, trained });
  });
for (const name of ["granite", "olmo2", "mistral3"])
  await attempt(name, async () => {
    using golden = loadFamilyGolden(name);
    const { model, probe, logits } = golden;
    await compare({ name, model, probe, adapter: golden.adapters[0]!.final, base: logits.base, trained: logits.all });
  });

await attempt("gemma3", async () => {
  const { model, adapters, probe } = loadGolden("gemma3");
  const folder = join(place.root, "gemma3-model");
  Bun.spawnSync(["cp", "-r", model, folder]);
  const { headDim } = readModelSpec(folder);
  await compareLoss("gemma3", folder, adapters[0]!.final, [...probe], { query_pre_attn_scalar: headDim });
});
const ROPE = { rope_theta: 500, rope_type: "default" };
const YARN = {
  ...ROPE,
  rope_type: "yarn",
  factor: 4,
  beta_fast: 4,
  original_max_position_embeddings: 16,
  attention_factor: 1.3,
};
for (const [name, more] of [
  ["smollm3", { no_rope_layers: [1, 1, 1], layer_types: null }],
  ["phi3", { original_max_position_embeddings: 512, max_position_embeddings: 1024 }],
  ["olmo3", { rope_parameters: { full_attention: YARN, sliding_attention: ROPE } }],
] as const)
  await attempt(name, async () => {
    using golden = loadFamilyGolden(name);
    await compareLoss(name, golden.model, golden.adapters[0]!.final, golden.probe, more);
  });

for (const kind of goldenKinds)
  await attempt(`tokenizer ${kind}`, async () => {
    const model = join(place.root, `${kind}-tokenizer`);
    const { model: parts, added_tokens: added } = JSON.parse(readFileSync(join(goldenFolder(kind), "tokenizer.json"), "utf8"));
    const ids = [...Object.values<number>(parts.vocab), ...(added as { id: number }[]).map(({ id }) => id)];
    writeTinyModel(model, 1, { vocab_size: Math.max(...ids) + 1 });
    for (const name of ["tokenizer.json", "tokenizer_config.json"])
      writeFileSync(join(model, name), readFileSync(join(goldenFolder(kind), name)));
    const adapter = join(place.root, `${kind}-adapter`);
    const spec = readModelSpec(model);
    const { out, in: width } = linearShape(spec, "o_proj");
    const factors = [
      { layer: 0, linear: "o_proj", factor: "A", values: new Float32Array(width) },
      { layer: 0, linear: "o_proj", factor: "B", values: new Float32Array(out) },
    ] as const;
    const settings = { rank: 1, alpha: 1, dropout: 0, targets: ["o_proj"], rslora: false, baseModel: model } as const;
    writePeftAdapter(adapter, spec, settings, factors);
    const path = await exported(adapter, model, `${kind}-tokenizer`, "f16");
    const tokenizer = loadTokenizer(model);
    // llama.cpp normalises nothing, and ends texts at a zero
    const texts = stringsOf(5, 900, []).filter((text) => !text.includes("\0") && text.normalize("NFC") === text);
    const found = await ask<number[][]>("tokens", { path, texts });
    const other = texts.filter((text, i) => `${found[i]}` !== `${tokenizer.encode(text)}`);
    const share = `${texts.length - other.length} of ${texts.length} texts`;
    report(`tokenizer ${kind}`, other.length === 0, other.length === 0 ? share : `${share}, not ${JSON.stringify(other[0])}`);
  });

await attempt("SmolLM2-135M-Instruct", async () => {
  const adapter = join(place.root, "smollm-adapter");
  writeGoldenAdapter(adapter, readModelSpec(SMOLLM));
  const rows = greedy.rows.map(({ ids }) => ids);
  const wanted = greedy.rows.map(({ adapted }) => adapted);
  const share = (found: readonly (readonly number[])[]) => {
    const same = found.flatMap((row, i) => wanted[i]!.slice(0, row.length).map((id, at): number => (id === row[at] ? 1 : 0)));
    return same.reduce((a, b) => a + b) / same.length;
  };
  const paths: Record<string, string> = {};
  for (const type of Object.keys(GGUF_TYPES)) {
    const path = await exported(adapter, SMOLLM, `smollm-${type}`, type);
    paths[type] = path;
    const isExact = type === "f32"; // the adapter is a strong one, and margins are small
    const found = share(await ask<number[][]>("greedy", { path, rows, new: isExact ? greedy.new : 1 }));
    const least = isExact ? 1 : type === "q4_k_m" ? 0.3 : 0.7;
    const what = isExact ? "greedy tokens" : "first tokens";
    report(`${type}, transformers' ${what}`, found >= least, `${(100 * found).toFixed(1)} % the same`);
  }
  const work = join(place.root, "theirs.gguf");
  for (const type of ["q8_0", "q4_k_m"] as const) {
    const more = { source: paths["f32"], path: paths[type], file_type: GGUF_TYPES[type], work };
    const other = await ask<string[]>("quantised", more);
    report(
      `${type}, llama-quantize's bytes`,
      other.length === 0,
      other.length === 0 ? "all tensors" : other.slice(0, 5).join("; "),
    );
  }
  const tokenizer = loadTokenizer(SMOLLM);
  const found = await ask<Record<string, string>>("metadata", { path: paths["q8_0"] });
  report(
    "the chat template",
    found["tokenizer.chat_template"] === tokenizer.chatTemplate,
    `${tokenizer.chatTemplate?.length} characters`,
  );
  report(
    "the context",
    Number(found["llama.context_length"]) === readModelConfig(SMOLLM).config["max_position_embeddings"],
    `${found["llama.context_length"]}`,
  );
});

llama.stdin.end();
await llama.exited;
console.log(failed === 0 ? "all as llama.cpp has it" : `${failed} wrong`);
process.exit(failed === 0 ? 0 : 1);

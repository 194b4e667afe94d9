// Gemma against transformers and PEFT: training, generation with and without adapters, as a part of a larger model, merged.

import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { factorsIn } from "../../src/methods/layout.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { prefill } from "../../src/schedule/decode.ts";
import { generate } from "../../src/session/decoding/generate.ts";
import { openGeneration } from "../../src/session/generation/open.ts";
import { exportModel } from "../../src/session/publishing/export-model.ts";
import { nextLogits } from "../helpers/generation.ts";
import { GEMMA_MODELS, loadGolden } from "../helpers/golden.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { rewritten } from "../helpers/rewritten.ts";

comparesWithPeft("cpu", "fp32", { loss: 1e-6, gradNorm: 5e-6, weights: 1e-5 }, true, GEMMA_MODELS);

const root = mkdtempSync(join(tmpdir(), "mlora-gemma-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const device = chooseDevice("cpu", "fp32");

type Made = readonly { readonly tokens: readonly number[]; readonly margin: number }[];
type Generated = { readonly prompts: readonly (readonly number[])[] } & Readonly<Record<"base" | "all" | "few", Made>>;

function adapterIn(folder: string, base: string) {
  const spec = readModelSpec(base);
  const saved = readPeftAdapter(folder, spec);
  const { rank, scale, targets, places } = saved;
  const factors = factorsIn({ from: 0, to: spec.layers }, targets, "lora", places).map((at) => {
    return { ...at, values: saved.tensor(at.layer, at.linear, at.factor) };
  });
  return { name: "adapter", rank, scale, targets, ...(places ? { places } : {}), factors };
}

/** A model alone or with an adapter that continues prompts, and the logits that follow each prompt. */
async function goesOn(base: string, adapter: string | null, prompts: Generated["prompts"], limit: number) {
  const { spec } = readModelFacts(base, readModelSpec(base));
  const adapters = adapter === null ? [] : [adapterIn(adapter, base)];
  const slot = adapters.length - 1;
  const wanted = prompts.map((prompt) => ({ adapter: slot, prompt: prompt.length, limit }));
  const plan = planGeneration(spec, device, adapters, wanted, "dense");
  await using engine = await openGeneration(plan, { folder: base }, adapters);
  const tokens = prompts.map((): number[] => []);
  const asked = prompts.map((prompt, seed) => ({ adapter: slot, prompt, limit, seed }));
  for await (const { index, token } of generate(engine, asked, { temperature: 0, topK: 0, topP: 1 }, new Set()))
    tokens[index]!.push(token);
  const logits: Float32Array[] = [];
  for (const prompt of prompts)
    logits.push(
      ...(await nextLogits(
        engine,
        prefill([{ adapter: slot, ids: prompt, firstRow: 0 }], plan.stages[0].sizes.slots, engine.tile),
      )),
    );
  return { tokens, logits };
}

const farthest = (a: Float32Array, b: Float32Array): number =>
  a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i]!)), 0);

describe.each(GEMMA_MODELS)("%s", (name) => {
  const golden = loadGolden(name);
  const base = golden.model;
  const made: Generated = JSON.parse(readFileSync(join(base, "..", "generated.json"), "utf8"));
  const folderOf = (which: "all" | "few") => join(base, "..", which, "final");
  const { vocab } = readModelSpec(base);

  test("logits are transformers', of every token of a row, alone and with adapters", async () => {
    const rows = [...golden.probe.keys()].map((last) => [...golden.probe.subarray(0, last + 1)]);
    for (const [adapter, want] of [
      [null, golden.logits],
      [folderOf("all"), golden.adapters[0]!.logits],
    ] as const) {
      const { logits } = await goesOn(base, adapter, rows, 1);
      for (const [i, got] of logits.entries())
        expect(farthest(got, want.subarray(i * vocab, (i + 1) * vocab))).toBeLessThan(1e-5);
    }
  });

  test.each(["base", "all", "few"] as const)("generates token for token what transformers does: %s", async (which) => {
    expect(Math.min(...made[which].map(({ margin }) => margin))).toBeGreaterThan(0.01);
    const limit = made[which][0]!.tokens.length;
    const { tokens } = await goesOn(base, which === "base" ? null : folderOf(which), made.prompts, limit);
    expect(tokens).toEqual(made[which].map(({ tokens }) => [...tokens]));
  });

  test("the adapters change what is said", () => {
    const texts = (["base", "all", "few"] as const).map((which) => JSON.stringify(made[which].map(({ tokens }) => tokens)));
    expect(new Set(texts).size).toBe(3);
  });

  test("as a part of a model that sees, it is the same", async () => {
    const whole = join(root, `${name}-wrapper`);
    rewritten(base, whole, {
      config: (text) => ({
        architectures: [name === "gemma3" ? "Gemma3ForConditionalGeneration" : "Gemma4ForConditionalGeneration"],
        text_config: text,
      }),
      name: (tensor) => (name === "gemma3" ? `language_model.${tensor}` : tensor.replace("model.", "model.language_model.")),
    });
    const [alone, part] = [await goesOn(base, null, made.prompts, 4), await goesOn(whole, null, made.prompts, 4)];
    expect(part).toEqual(alone);
  });

  test("merged with an adapter, it has the adapter's logits", async () => {
    const output = join(root, `${name}-merged`);
    exportModel(folderOf("all"), { base, output, dtype: "fp32", mostBytes: 1 << 30, print: () => undefined });
    const [merged, adapted] = [
      await goesOn(output, null, made.prompts, 8),
      await goesOn(base, folderOf("all"), made.prompts, 8),
    ];
    expect(merged.tokens).toEqual(adapted.tokens);
    for (const [i, got] of merged.logits.entries()) expect(farthest(got, adapted.logits[i]!)).toBeLessThan(1e-4);
    // Numbers are spelled as they were: transformers refuses a whole number where it expects a float.
    const spelled = (folder: string) => readFileSync(join(folder, "config.json"), "utf8").match(/: -?[\d.e-]+,?$/gm);
    expect(spelled(output)).toEqual(spelled(base));
  });
});

test("keys and values that no layer reads are reported", () => {
  const folder = join(root, "dead");
  const change = (config: Record<string, unknown>) => ({ ...config, num_kv_shared_layers: 1 });
  rewritten(loadGolden("gemma4-k-eq-v").model, folder, { config: change, name: (tensor) => tensor });
  const { spec, notices } = readModelFacts(folder, readModelSpec(folder));
  expect(spec.kvSources).toEqual([null, null, 0]);
  const told = "2 of model.layers.*.self_attn.* (keys and values of layers that read those of another)";
  expect(notices).toEqual([expect.stringContaining(told)]);
});

test.each([
  ["gemma3", { hidden_activation: "gelu" }, 'hidden_activation is "gelu"'],
  ["gemma3", { use_bidirectional_attention: true }, "use_bidirectional_attention is true"],
  ["gemma3", { attn_logit_softcapping: 50 }, "attn_logit_softcapping is 50, expected null"],
  ["gemma3", { layer_types: ["sliding_attention", "chunked_attention", "full_attention"] }, '"chunked_attention" for layer 1'],
  ["gemma3", { sliding_window_pattern: 0 }, "sliding_window_pattern is 0"],
])("refuses a config of %s with %o", (name, changes, message) => {
  const folder = join(root, Bun.hash(JSON.stringify(changes)).toString());
  mkdirSync(folder);
  const config = JSON.parse(readFileSync(join(loadGolden(name as "gemma3").model, "config.json"), "utf8"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...changes }));
  expect(() => readModelSpec(folder)).toThrow(message);
});

// Adapters of embedding and head from the command line: planned, trained, exported, generated with, continued, refused.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "smol-toml";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { openSafetensors } from "../../src/files/safetensors.ts";
import { signalled } from "../helpers/middle.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { FILES } from "../helpers/preferences.ts";
import { leftOf, metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());
const spec = readModelSpec(place.model); // tied
const untied = join(place.root, "untied");
writeTinyModel(untied, 2, { tie_word_embeddings: false });

const CASES: Readonly<Record<string, object>> = {
  tokens: { trainable_tokens: ["<|user|>", "7", 65], targets: ["q_proj"], rank: 3 },
  both: { targets: ["q_proj", "embed_tokens", "lm_head"], rank: 4, rank_pattern: { lm_head: 2 }, dropout: 0.1 },
  head: { targets: ["lm_head"], rank: 3, alpha: 6, rslora: true },
  plain: { targets: "all-linear", rank: 2, method: "dora" },
};
const NAMES = Object.keys(CASES);

const recipeOf = (adapters: readonly object[], model = place.model) =>
  place.project(
    stringify({
      model: { path: model, precision: "fp32" },
      run: { output: "out", device: "cpu" },
      defaults: {
        data: { train: "rows.jsonl", eval: "rows.jsonl" },
        learning_rate: 1e-2,
        steps: 8,
        batch_size: 2,
        accumulation: 2,
        eval_every: 8,
      },
      adapter: adapters,
    }),
    { ...FILES, "rows.jsonl": sums(12) },
  );
const recipe = recipeOf(NAMES.map((name) => ({ name, ...CASES[name]! })));
const outputOf = (path: string) => join(path, "..", "out");
const folderOf = (name: string) => join(outputOf(recipe), name);
const lossesOf = (path: string, name: string) =>
  metrics(outputOf(path), "evaluation").flatMap(({ adapter, loss }) => (adapter === name ? [loss as number] : []));
const succeeds = async (...args: readonly string[]) => {
  const { code, out, err } = await place.mlora(...args);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return { out, err };
};

test("the plan has what is trained of the tables", async () => {
  const { out } = await succeeds("plan", recipe, "--json");
  const { adapters } = JSON.parse(out);
  const [tokens, both, head] = adapters;
  expect(tokens.tables).toEqual({ embedding: { tokens: [257, 55, 65] }, head: { tokens: [257, 55, 65] } });
  expect(tokens.parameters).toBe(2 * 3 * (32 + 32) + 3 * 32);
  expect(both.tables).toEqual({ embedding: { rank: 4, scale: 8 }, head: { rank: 2, scale: 16 } });
  expect(head.parameters).toBe(3 * (32 + spec.vocab));
  const text = (await succeeds("plan", recipe)).out;
  for (const [name, told] of Object.entries({ tokens: "1, embedding, head", head: "0, head", plain: "7" }))
    expect(text).toMatch(new RegExp(`^ *${name} +\\d+ +${told} `, "m"));
}, 120_000);

describe("trained", () => {
  const run = succeeds("run", recipe);

  test("they learn, and are written as PEFT reads them", async () => {
    await run;
    for (const name of NAMES) {
      const losses = lossesOf(recipe, name);
      expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.02);
    }
    const config = (name: string) => JSON.parse(readFileSync(join(folderOf(name), "adapter_config.json"), "utf8"));
    const own = ({
      r,
      lora_alpha,
      rank_pattern,
      alpha_pattern,
      target_modules,
      trainable_token_indices,
    }: ReturnType<typeof config>) => ({
      ...{ r, lora_alpha, rank_pattern, alpha_pattern, target_modules, trainable_token_indices },
    });
    const nothing = { rank_pattern: {}, alpha_pattern: {}, trainable_token_indices: null };
    expect(own(config("tokens"))).toEqual({
      ...nothing,
      ...{ r: 3, lora_alpha: 32, target_modules: ["q_proj"], trainable_token_indices: { embed_tokens: [257, 55, 65] } },
    });
    expect(own(config("both"))).toEqual({
      ...nothing,
      ...{ r: 4, lora_alpha: 32, target_modules: ["q_proj", "model.embed_tokens", "lm_head"], rank_pattern: { lm_head: 2 } },
    });
    expect(own(config("head"))).toEqual({ ...nothing, r: 3, lora_alpha: 6, target_modules: ["lm_head"] });
    using file = openSafetensors(join(folderOf("both"), "adapter_model.safetensors"));
    const shapes = Object.fromEntries(
      [...file.tensors].map(([name, { shape }]) => [name.replace("base_model.model.", ""), shape]),
    );
    expect(shapes).toMatchObject({
      "lm_head.lora_A.weight": [2, 32],
      "lm_head.lora_B.weight": [260, 2],
      "model.embed_tokens.lora_embedding_A": [4, 260],
      "model.embed_tokens.lora_embedding_B": [32, 4],
    });
  }, 60_000);

  for (const name of ["tokens", "both", "head"])
    test(`${name}: merged, it has the loss that it had, and says the same`, async () => {
      await run;
      const merged = join(place.root, `merged-${name}`);
      await succeeds("export", folderOf(name), "--output", merged, "--dtype", "fp32");
      expect(readModelSpec(merged).tiedEmbeddings).toBe(name === "tokens");
      const again = recipeOf([{ name: "fresh", rank: 1, steps: 1 }], merged);
      await succeeds("run", again);
      expect(lossesOf(again, "fresh")[0]! / lossesOf(recipe, name).at(-1)!).toBeCloseTo(1, 4);
      const say = async (...of: string[]) => {
        const asked = ["--prompt", "What is 2 + 3?", "--max-new-tokens", "12", "--precision", "fp32", "--device", "cpu"];
        return (await succeeds("generate", ...of, ...asked)).out;
      };
      expect(await say(merged)).toBe(await say("--adapter", folderOf(name)));
    }, 60_000);

  for (const name of ["tokens", "both", "head"])
    test(`${name}: is continued with the same tables, and with others refused with what it has`, async () => {
      await run;
      const { rslora } = CASES[name] as { rslora?: boolean };
      const scaled = rslora ? { rslora } : {};
      const other = recipeOf([{ name: "on", rank: 3, targets: ["q_proj"], from: folderOf(name), ...scaled }]);
      const refused = await place.mlora("plan", other);
      expect([refused.code, refused.out]).toEqual([2, ""]);
      const [told, keys] = refused.err.split("hint: give the adapter what it has there, and no exclude:\n");
      expect(told).toStartWith(`error[plan.from]: adapter 'on' cannot continue ${folderOf(name)}: its ranks`);
      const path = recipeOf([{ name: "on", from: folderOf(name), steps: 1, ...scaled }]);
      const text = readFileSync(path, "utf8").replace('name = "on"\n', `name = "on"\n${keys}\n`);
      const on = place.project(text, { "rows.jsonl": sums(12) });
      await succeeds("run", on);
      expect(lossesOf(on, "on")[0]! / lossesOf(recipe, name).at(-1)!).toBeCloseTo(1, 6);
    }, 60_000);

  test("preferences are measured against an adapter of tables", async () => {
    await run;
    for (const folder of [folderOf("tokens"), folderOf("both")]) {
      const data = { train: "pairs.jsonl", eval: "pairs.jsonl" };
      const preferring = { data, steps: 1, objective: { name: "dpo", reference: folder } };
      const path = recipeOf([
        { name: "with", trainable_tokens: [80, 81], targets: ["v_proj"], ...preferring },
        { name: "without", rank: 3, ...preferring },
      ]);
      await succeeds("run", path);
      expect(lossesOf(path, "with")[0]!).toBe(lossesOf(path, "without")[0]!);
    }
  }, 60_000);
});

test("interrupted on two stages they continue on one, to the same numbers", async () => {
  const text = (factor: number) =>
    recipeOf(NAMES.map((name) => ({ name, ...CASES[name]!, steps: 40 * factor, eval_every: 20 })));
  const { path: disturbed, ...interrupted } = await signalled(
    "SIGINT",
    (factor) => {
      const path = text(factor);
      return { factor, path, running: place.start(["run", path, "--stages", "2"]) };
    },
    ({ path }) => existsSync(join(outputOf(path), "metrics.jsonl")) && metrics(outputOf(path), "step").length >= 30,
  );
  const { code, err } = interrupted.ended;
  expect([code, code === 1 ? "" : err]).toEqual([1, ""]);
  await succeeds("run", disturbed, "--resume");
  const undisturbed = text(interrupted.factor);
  await succeeds("run", undisturbed);
  for (const name of NAMES) expect(leftOf(outputOf(disturbed), name)).toEqual(leftOf(outputOf(undisturbed), name));
}, 240_000);

describe("before any work", () => {
  const cases: readonly (readonly [string, object, string, string])[] = [
    [
      "a text of several tokens",
      { trainable_tokens: ["<tool>"] },
      "plan.tokens",
      'trainable_tokens has "<tool>", expected one token, found the 6 tokens 60, 116, 111, 111, 108, 62',
    ],
    ["a token beyond the tables", { trainable_tokens: [260] }, "plan.targets", "the base model's tables end with token 259"],
    ["a token twice, once by its text", { trainable_tokens: ["A", 65] }, "plan.targets", "has token 65 twice"],
    ["an empty list", { trainable_tokens: [] }, "recipe.invalid", "is empty, expected at least one token"],
    [
      "tokens of a table that is a target",
      { trainable_tokens: ["A"], targets: ["lm_head"] },
      "plan.targets",
      "its targets have lm_head, of which trainable_tokens trains single rows",
    ],
    ["tokens of another method", { trainable_tokens: ["A"], method: "dora" }, "recipe", 'is for the method "lora"'],
  ];
  test.each(cases)("%s is refused", async (_, keys, error, message) => {
    const { code, err } = await place.mlora("plan", recipeOf([{ name: "a", ...keys }]));
    expect(code).toBe(2);
    expect(err).toContain(message);
    expect(err).toContain(`error[${error}`);
  });

  test("of tables that are not tied a list is of the embedding, which a notice says", async () => {
    const { out, err } = await succeeds("plan", recipeOf([{ name: "a", trainable_tokens: ["A"] }], untied));
    expect(out + err).toContain("a: trainable_tokens is a list, which is of the embedding");
    const both = { trainable_tokens: { embed_tokens: ["A"], lm_head: ["A", "B"] } };
    const path = recipeOf([{ name: "a", ...both, steps: 2 }], untied);
    await succeeds("run", path);
    expect(readPeftAdapter(join(outputOf(path), "a"), readModelSpec(untied)).tables).toEqual({
      embedding: { tokens: [65] },
      head: { tokens: [65, 66] },
    });
  }, 120_000);
});

// The recipe's JSON schema: what is committed is current, and a validator that knows nothing of mlora comes to the same as the
// program.

import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import Ajv from "ajv";
import { parse } from "smol-toml";
import { files } from "../../scripts/keys.ts";
import { editorSchema, recipeSchema, valuesOf } from "../../src/recipe/json-schema.ts";
import { formatRecipe, parseRecipe } from "../../src/recipe/load.ts";
import { ADAPTER_KEYS } from "../../src/recipe/schema.ts";

const ROOT = join(import.meta.dir, "..", "..");
const validate = new Ajv({ strict: false, allErrors: true }).compile(editorSchema());
const accepts = (text: string) => validate(parse(text));
const HEAD = '[model]\npath = "m"\n[run]\noutput = "o"\n[[adapter]]\nname = "a"\ndata = "d.jsonl"\n';

test("what is committed follows from the schema", () => {
  for (const [path, text] of files()) expect(readFileSync(join(ROOT, path), "utf8") === text, path).toBe(true);
});

test("the recipes that come along are valid, and so is every recipe as a run writes it down", () => {
  const names = readdirSync(join(ROOT, "recipes")).filter((name) => name.endsWith(".toml"));
  expect(names.length).toBeGreaterThan(2);
  for (const name of names) {
    const path = join(ROOT, "recipes", name);
    const text = readFileSync(path, "utf8");
    expect(text.split("\n")[0], name).toBe("#:schema ./recipe.schema.json"); // editors find it there
    expect(accepts(text), `${name}: ${JSON.stringify(validate.errors)}`).toBe(true);
    const written = formatRecipe(parseRecipe(text, path));
    expect(accepts(written), `${name}, written: ${JSON.stringify(validate.errors)}`).toBe(true);
  }
});

test.each([
  'rank = "16"',
  "rank = 0",
  "rnak = 8",
  "dropout = 1.0",
  'method = "qlora"',
  'objective = { name = "dpo", betta = 1 }',
  'objective = "ppo"',
  'init = "pissa_niter_"',
  "betas = [0.9]",
  "layers = []",
  "halving = { keep = 0.5 }",
])("%s is refused by both", (line) => {
  expect(accepts(`${HEAD}${line}`)).toBe(false);
  expect(() => parseRecipe(`${HEAD}${line}`, "/r.toml")).toThrow();
});

test.each([
  'objective = { name = "dpo", beta = 0.3, reference = "base" }',
  'init = "pissa_niter_4"',
  'targets = ["q_proj"]\nlayers = "1-3"',
  "max_grad_norm = false",
  "chat_template_kwargs = { enable_thinking = false }",
])("%s is taken by both", (line) => {
  expect(accepts(`${HEAD}${line}`), JSON.stringify(validate.errors)).toBe(true);
  expect(parseRecipe(`${HEAD}${line}`, "/r.toml").adapters).toHaveLength(1);
});

test("a list of known words is described by these", () => {
  const tracking = recipeSchema().properties!["run"]!.properties!["tracking"]!;
  expect(valuesOf(tracking)).toBe('a list of some of `"tensorboard"`, `"wandb"`, `"mlflow"`');
});

test("every key says what it means", () => {
  const { adapter } = recipeSchema().properties!;
  const { properties } = adapter!.items as { properties: Record<string, { description?: string }> };
  expect(Object.keys(properties).sort()).toEqual([...ADAPTER_KEYS, "name", "sweep"].sort());
  for (const [key, { description }] of Object.entries(properties)) expect(description, key).toMatch(/^\S.{5,120}$/);
});

// `mlora init`: its recipe runs as it is, whatever the rows are of, or it says why it cannot be written.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Ajv from "ajv";
import { parse } from "smol-toml";
import { loadRecipe } from "../../src/recipe/load.ts";
import { planOf } from "../../src/session/planning/planned-run.ts";
import { firstRecipe, openFirstRecipe } from "../../src/session/preparation/first-recipe.ts";
import { writeTinyModel } from "../helpers/model.ts";
import { PROGRAM } from "../helpers/program.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-init-"));
const model = join(root, "model");
beforeAll(() => writeTinyModel(model));
afterAll(() => rmSync(root, { recursive: true, force: true }));

let made = 0;
function rowsFile(n: number, row: (i: number) => object, name = "train.jsonl"): string {
  const folder = join(root, `Rows ${made++}`);
  mkdirSync(folder);
  writeFileSync(join(folder, name), `${Array.from({ length: n }, (_, i) => JSON.stringify(row(i))).join("\n")}\n`);
  return join(folder, name);
}
async function mlora(cwd: string, ...args: string[]) {
  const child = Bun.spawn([...PROGRAM, ...args], { cwd, stdout: "pipe", stderr: "pipe", stdin: "ignore" });
  const [out, err, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, out, err };
}

test("what it writes runs as it is, is valid by the schema next to it, and is not written over", async () => {
  const file = rowsFile(24, (i) => ({ prompt: `What is ${i} + 1?`, completion: `${i + 1}` }));
  const folder = join(file, "..");
  const init = await mlora(folder, "init", "../model", "train.jsonl");
  expect([init.code, init.err]).toEqual([0, ""]);
  const text = readFileSync(join(folder, "recipe.toml"), "utf8");
  expect(text.split("\n")[0]).toBe("#:schema ./recipe.schema.json");
  const schema = JSON.parse(readFileSync(join(folder, "recipe.schema.json"), "utf8"));
  expect(new Ajv({ strict: false }).compile(schema)(parse(text))).toBe(true);
  const run = await mlora(folder, "run", "recipe.toml");
  expect([run.code, run.err]).toEqual([0, expect.not.stringContaining("error[")]);
  const { adapters } = loadRecipe(join(folder, "recipe.toml"));
  expect(adapters.map(({ name, evalSplit }) => [name, evalSplit])).toEqual([[`rows-${made - 1}`, 0.1]]);
  expect(existsSync(join(folder, "out", adapters[0]!.name, adapters[0]!.name, "adapter_model.safetensors"))).toBe(true);
  const again = await mlora(folder, "init", "../model", "train.jsonl");
  expect([again.code, again.err]).toEqual([2, expect.stringContaining("recipe.toml is there already")]);
});

const planned = async (file: string) => {
  const path = join(file, "..", "recipe.toml");
  writeFileSync(path, firstRecipe(model, file, path));
  const { facts, plan } = await planOf(loadRecipe(path));
  return { facts: facts.adapters[0]!, recipe: plan.recipe.adapters[0]! };
};

describe("the form of the rows", () => {
  test.each([
    ["preferences", { prompt: "a", chosen: "b", rejected: "c" }, "dpo"],
    ["judged answers", { prompt: "a", completion: "b", label: true }, "kto"],
    [
      "chats",
      {
        messages: [
          { role: "user", content: "a" },
          { role: "assistant", content: "b" },
        ],
      },
      "sft",
    ],
    ["texts", { text: "a b c" }, "sft"],
  ])("%s", async (_, row, objective) => {
    const { facts, recipe } = await planned(rowsFile(6, () => row));
    expect([`${recipe.objective.name}`, facts.rows, facts.dropped_rows]).toEqual([objective, 6, 0]);
  });

  test("fields of other names go through a template that says so", async () => {
    const { recipe } = await planned(rowsFile(6, (i) => ({ question: `${i}?`, answer: `${i}!`, id: i })));
    expect(recipe.template).toEqual({ prompt: "{{ question }}", completion: "{{ answer }}" });
  });

  test("a model and rows in the other order are put right", async () => {
    const rows = rowsFile(3, () => ({ text: "a" }));
    const swapped = openFirstRecipe(rows, model, join(rows, "..", "r.toml"));
    expect(await swapped.catch(({ hint }) => hint)).toBe(`the model comes first: mlora init ${model} ${rows}`);
  });

  test("fields that say nothing of it, and rows at fault, are refused with their place", () => {
    const other = rowsFile(3, (i) => ({ x: i }));
    expect(() => firstRecipe(model, other, join(other, "..", "r.toml"))).toThrow(/first row has the fields x/);
    const broken = rowsFile(3, (i) => ({ prompt: "a", completion: i === 2 ? "" : "b" }));
    expect(() => firstRecipe(model, broken, join(broken, "..", "r.toml"))).toThrow(/train\.jsonl:3: has an empty 'completion'/);
  });
});

test("no row of those looked at is cut, where the model has room", async () => {
  const { facts, recipe } = await planned(rowsFile(30, (i) => ({ text: "w ".repeat(1 + i) })));
  expect(facts.truncated_rows).toBe(0);
  expect(recipe.maxLength % 64).toBe(0);
});

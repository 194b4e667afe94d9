// Which adapters are held against each other: by losses of the same rows alone, at rungs of a sweep by their own metric.

import { expect, test } from "bun:test";
import { parseRecipe } from "../../src/recipe/load.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { differingKeys, heldOutKey } from "../../src/session/preparation/comparable.ts";
import { settingNotices } from "../../src/session/preparation/setting-notices.ts";
import type { AdapterState } from "../../src/session/scheduling/adapter-state.ts";
import { decideRungs } from "../../src/session/scheduling/halving.ts";
import { HEAD } from "../helpers/recipe-text.ts";

const DATA = 'data = { train = "a.jsonl", eval = "e.jsonl" }';
const recipesOf = (...keys: readonly string[]): readonly AdapterRecipe[] =>
  parseRecipe(HEAD + keys.map((of, i) => `[[adapter]]\nname = "a${i}"\n${of}\n`).join(""), "/here/r.toml").adapters;

test.each([
  ["learning_rate = 1e-3", null],
  ["rank = 4\ndropout = 0.1\nsteps = 7", null],
  ['data = { train = "other.jsonl", eval = "e.jsonl" }', null],
  ['data = { train = ["a.jsonl", "b.jsonl"], eval = "e.jsonl" }', null],
  ['data = { train = "a.jsonl", eval = "f.jsonl" }', "data"],
  ['data = { train = "a.jsonl", split = 0.2 }', "data"],
  ["max_length = 99", "max_length"],
  ['overlong = "drop"', "overlong"],
  ['thoughts = "drop"', "thoughts"],
  ['system = "Be brief."', "system"],
  ["chat_template = false", "chat_template"],
  ["chat_template_kwargs = { enable_thinking = false }", "chat_template_kwargs"],
  ['columns = { prompt = "q" }', "columns"],
  ['train_on = "all"', "train_on"],
  ['format = "template"\ntemplate = { prompt = "{{ a }}", completion = "{{ b }}" }', "format, template"],
  ['data = { train = "a.jsonl", eval = { path = "e.jsonl", rows = 9 } }', "data"],
  ['data = { train = { path = "a.jsonl", rows = 9 }, eval = "e.jsonl" }', null],
  ['objective = { name = "orpo", lambda = 0.2 }', "objective"],
])("%s: whether held-out losses can be compared", (keys, key) => {
  const [one, other] = recipesOf(DATA, keys.startsWith("data") ? keys : `${DATA}\n${keys}`) as [AdapterRecipe, AdapterRecipe];
  expect(differingKeys([one, other])).toEqual(key === null ? [] : key.split(", "));
  expect(heldOutKey(one) === heldOutKey(other)).toBe(key === null);
});

test("of rows that are split, a number of rows that are read holds others out", () => {
  const [one, other, same] = recipesOf(
    ...["rows = 9", "rows = 8", "rows = 9, weight = 1"].map((of) => `data = { train = { path = "a", ${of} }, split = 0.2 }`),
  ) as [AdapterRecipe, AdapterRecipe, AdapterRecipe];
  expect(differingKeys([one, other])).toEqual(["data"]);
  expect(differingKeys([one, same])).toEqual([]);
});

const sweepOf = (sweep: string, more = "") => {
  const recipes = recipesOf(`${DATA}\neval_every = 2\nhalving = { rung = 4, keep = 0.5 }\n${more}\n[adapter.sweep]\n${sweep}`);
  return recipes.map((recipe) => ({ name: recipe.name, steps: 20, recipe }));
};

test("a sweep that is halved over what its losses are of is reported, unless a metric compares", () => {
  expect(settingNotices(sweepOf("learning_rate = [1e-3, 1e-4]"))).toEqual([]);
  expect(settingNotices(sweepOf("max_length = [100, 200]\nrank = [2, 4]"))).toEqual([
    expect.stringMatching(/^a0: its halving compares held-out losses of adapters with another max_length, which/),
  ]);
  const METRIC = 'metrics = { command = ["true"], best = "f1" }';
  expect(settingNotices(sweepOf("max_length = [100, 200]", METRIC))).toEqual([]);
});

test("at a rung the better ones continue: by loss, or by the metric that says what is best", () => {
  const found = [
    { loss: 1, f1: 0.1 },
    { loss: 2, f1: 0.9 },
    { loss: 3, f1: 0.5 },
    { loss: 4, f1: 0.2 },
  ];
  const passing = (more: string) => {
    const members = sweepOf("learning_rate = [1e-3, 1e-4, 2e-4, 3e-4]", more).map((plan, i) => {
      const { loss, ...metrics } = found[i]!;
      return { plan, status: "rung", steps: 4, latest: { loss, exact: 0, rows: 1, metrics }, result: null };
    });
    const decided = decideRungs(members as unknown as readonly AdapterState[]);
    return {
      kept: decided.flatMap(({ dropped }, i) => (dropped === null ? [i] : [])),
      why: decided.find((of) => of.dropped)!.dropped,
    };
  };
  expect(passing("")).toEqual({ kept: [0, 1], why: "2 of 4 continued from step 4, with lower losses" });
  const best = 'metrics = { command = ["true"], best = "f1"';
  expect(passing(`${best} }`)).toEqual({ kept: [1, 2], why: "2 of 4 continued from step 4, with a better f1" });
  expect(passing(`${best}, goal = "min" }`)).toEqual({ kept: [0, 3], why: "2 of 4 continued from step 4, with a better f1" });
});

test("a rung waits for those that are on their way to it, and counts those that were dropped there before", () => {
  const plans = sweepOf("learning_rate = [1e-3, 1e-4, 2e-4, 3e-4]");
  const evaluated = (loss: number) => ({ loss, exact: 0, rows: 1, metrics: {} });
  const at = (status: string, steps: number, loss: number) => ({ status, steps, latest: evaluated(loss), result: null });
  const dropped = (steps: number, loss: number) => ({
    ...{ status: "ended", steps, latest: null },
    result: { status: "dropped", steps, after: evaluated(loss) },
  });
  const decided = (...members: readonly object[]) => {
    const all = members.map((of, i) => ({ plan: plans[i]!, ...of })) as unknown as readonly AdapterState[];
    return decideRungs(all).map(({ adapter, dropped }) => [all.indexOf(adapter), dropped === null]);
  };
  const both = [
    [0, true],
    [1, false],
  ];
  expect(decided(at("rung", 4, 1), at("rung", 4, 2))).toEqual(both);
  expect(decided(at("rung", 4, 1), at("rung", 4, 2), at("active", 3, 9))).toEqual([]);
  expect(decided(at("rung", 4, 1), at("rung", 4, 2), at("active", 5, 9))).toEqual(both);
  expect(decided(at("rung", 4, 1), at("rung", 4, 2), dropped(4, 8), dropped(4, 9))).toEqual([
    [0, true],
    [1, true],
  ]);
  expect(decided(at("rung", 4, 1), at("rung", 4, 2), dropped(2, 8), dropped(2, 9))).toEqual(both);
  expect(decided(at("rung", 4, 3), at("rung", 4, 2), dropped(4, 1), dropped(4, 9))).toEqual([
    [0, false],
    [1, true],
  ]);
});

// Adapters that learn preferences, next to each other and next to supervised ones, from the command line on.

import { afterAll, expect, test } from "bun:test";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { signalled } from "../helpers/middle.ts";
import { FILES, lines, NAMES, range, recipe } from "../helpers/preferences.ts";
import { areKept, leftOf, longer, metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const outputOf = (path: string) => join(path, "..", "out");

async function done(text: string): Promise<string> {
  const path = place.project(text, FILES);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return path;
}

const steps = (path: string, adapter: string) => metrics(outputOf(path), "step").filter((line) => line["adapter"] === adapter);
const evaluations = (path: string, adapter: string) =>
  metrics(outputOf(path), "evaluation").filter((line) => line["adapter"] === adapter) as unknown as {
    loss: number;
    exact: number;
    rows: number;
  }[];

test("every objective learns what it is given: losses fall and held-out rows are judged right", async () => {
  const path = await done(recipe(NAMES));
  for (const name of NAMES) {
    const all = evaluations(path, name);
    expect(all.at(-1)!.loss, name).toBeLessThan(all[0]!.loss);
    expect("contrastive_loss" in steps(path, name)[0]!).toBe(name === "cit");
    if (name !== "sft") expect(all.at(-1)!.exact / all.at(-1)!.rows, name).toBeGreaterThan(0.8);
    expect("accuracy" in steps(path, name)[0]!).toBe(name !== "sft");
  }
  // Before its first step an adapter is its reference.
  expect(steps(path, "dpo")[0]!["loss"]).toBeCloseTo(Math.log(2), 5);
  expect(evaluations(path, "dpo")[0]!.loss).toBeCloseTo(Math.log(2), 5);
  expect(steps(path, "ipo")[0]!["loss"]).toBeCloseTo((1 / 0.4) ** 2, 4);
  expect(steps(path, "hinge")[0]!["loss"]).toBeCloseTo(1, 5);
  expect(steps(path, "dpo")[0]!["reward_margin"]).toBeCloseTo(0, 5);
});

test("other adapters change nothing: alone, with all others, in two slots and on two stages the same", async () => {
  const together = await done(recipe(NAMES));
  const variants = [await done(recipe(NAMES, "slots = 2")), await done(recipe(NAMES, "stages = 2"))];
  for (const name of NAMES) {
    const alone = await done(recipe([name]));
    for (const other of [alone, ...variants])
      expect(leftOf(outputOf(other), name), name).toEqual(leftOf(outputOf(together), name));
  }
}, 240_000);

test("killed and continued, a run comes to the same, its reference that of the beginning", async () => {
  const names = ["dpo", "kto", "sft"];
  const { text, path, ended } = await signalled(
    "SIGKILL",
    (factor) => {
      const text = longer(recipe(names, "checkpoint = { steps = 4 }"), factor);
      const path = place.project(text, FILES);
      return { text, path, running: place.start(["run", path]) };
    },
    ({ path }) => areKept(outputOf(path), names),
  );
  expect(ended.code).toBe(137);
  const continued = await place.mlora("run", path);
  expect([continued.code, continued.err]).toEqual([0, expect.not.stringContaining("at step 0 of")]);
  const undisturbed = await done(text);
  for (const name of names) expect(leftOf(outputOf(path), name)).toEqual(leftOf(outputOf(undisturbed), name));
});

test("an adapter as reference is not the base: of another rank, next to one that continues it", async () => {
  const first = await done(recipe(["cpo"]));
  const path = place.project(recipe(["dpo", "smooth", "ipo"]), FILES);
  const folder = join(path, "..", "judge");
  cpSync(join(outputOf(first), "cpo"), folder, { recursive: true });
  const text = recipe(["dpo"])
    .replace("beta = 0.5 }", 'beta = 0.5, reference = "judge" }')
    .replace('name = "dpo"\nobjective', 'name = "judged"\nobjective');
  const onBase = recipe(["dpo"]);
  const both = place.project(`${onBase}\n${text.slice(text.indexOf("[[adapter]]"))}`, FILES);
  cpSync(folder, join(both, "..", "judge"), { recursive: true });
  expect((await place.mlora("run", both)).code).toBe(0);
  expect(steps(both, "dpo")[0]!["loss"]).toBeCloseTo(Math.log(2), 5);
  const judged = steps(both, "judged")[0]! as unknown as { loss: number; reward_margin: number };
  expect(Math.abs(judged.loss - Math.log(2))).toBeGreaterThan(0.05);
  expect(judged.reward_margin).toBeLessThan(-0.05); // the judge prefers what was chosen more than the base does
  // An adapter that continues the judge is the judge before its first step: by "start", and by its folder as well.
  const on = (reference: string) =>
    text
      .replace('reference = "judge"', `reference = "${reference}"`)
      .replace("rank = 4", "rank = 5")
      .replace("dropout = 0\n", 'dropout = 0\nfrom = "judge"\n');
  for (const [reference, is] of [
    ["start", true],
    ["judge", true],
    ["base", false],
  ] as const) {
    const one = place.project(on(reference), FILES);
    cpSync(folder, join(one, "..", "judge"), { recursive: true });
    const { code, err } = await place.mlora("run", one);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    const { loss, reward_margin: margin } = steps(one, "judged")[0]! as unknown as typeof judged;
    if (is) expect(loss).toBeCloseTo(Math.log(2), 5);
    else expect(margin).toBeCloseTo(-judged.reward_margin, 5); // the base as judge of the judge
  }
});

test.each([
  ["no rejected answer", "dpo", '{"prompt": "a", "chosen": "b"}', "data.row", "lacks the field 'rejected'"],
  ["an empty answer", "dpo", '{"prompt": "a", "chosen": " ", "rejected": "c"}', "data.row", "has an empty 'chosen'"],
  ["no prompt", "orpo", '{"chosen": "b", "rejected": "c"}', "data.row", "lacks the field 'prompt'"],
  ["no label", "kto", '{"prompt": "a", "completion": "b"}', "data.row", "in 'label', expected true or false"],
  ["no paraphrase", "cit", '{"prompt": "a", "completion": "b"}', "data.row", "lacks the field 'paraphrase'"],
  [
    "an empty paraphrase",
    "cit",
    '{"prompt": "a", "paraphrase": " ", "completion": "b"}',
    "data.row",
    "has an empty 'paraphrase'",
  ],
  [
    "half a conversation",
    "cit",
    '{"prompt": [], "paraphrase": "b", "completion": []}',
    "data.row",
    "no list of turns in 'prompt'",
  ],
  ["one row for CIT", "cit", '{"prompt": "a", "paraphrase": "c", "completion": "b"}', "data.file", "has one row"],
  ["one row for KTO", "kto", '{"prompt": "a", "completion": "b", "label": true}', "data.file", "has one row"],
])("data with %s is refused", async (_, name, row, code, message) => {
  const text = recipe([name]).replace(", split = 0.25", "").replace("eval_every = 7\n", "");
  const path = place.project(text, {
    ...FILES,
    "pairs.jsonl": `${row}\n`,
    "labels.jsonl": `${row}\n`,
    "paraphrases.jsonl": `${row}\n`,
  });
  const { code: exit, err } = await place.mlora("run", path);
  expect([exit, err]).toEqual([2, expect.stringContaining(`error[${code}]`)]);
  expect(err).toContain(message);
});

test.each([
  ["an unknown objective", 'objective = "dop"', 'objective is "dop", expected'],
  ["an unknown key", 'objective = { name = "dpo", bta = 1 }', "bta is an unknown key; did you mean 'beta'?"],
  ["a key of another objective", 'objective = { name = "orpo", beta = 1 }', "beta is an unknown key"],
  ["an absurd beta", 'objective = { name = "dpo", beta = 0 }', "beta is 0, expected a number above 0"],
  ["a format of supervised rows", 'objective = "dpo"\nformat = "text"', "is for supervised fine-tuning"],
  ["a temperature of nothing", 'objective = { name = "cit", temperature = 0 }', "temperature is 0, expected a number above 0"],
  [
    "a pooling that is none",
    'objective = { name = "cit", pooling = "first" }',
    'pooling is "first", expected "last" or "mean"',
  ],

  ["a reference that is not there", 'objective = { name = "dpo", reference = "none" }', "none"],
])("a recipe with %s is refused", async (_, keys, message) => {
  const text = recipe(["sft"]).replace('objective = "sft"', keys).replace("rows.jsonl", "pairs.jsonl");
  const { code, err } = await place.mlora("run", place.project(text, FILES));
  expect([code, err]).toEqual([2, expect.stringContaining(message)]);
});

test("rows that would each be alone in a micro-batch have nothing to be told apart from: the plan says so", async () => {
  const text = recipe(["cit"]).replace("tokens_per_microbatch = 150", "tokens_per_microbatch = 50");
  const { code, err } = await place.mlora("run", place.project(text, FILES));
  expect([code, err]).toEqual([2, expect.stringContaining("error[plan.contrast]")]);
  expect(err).toContain("with 50 tokens each row would be alone");
});

type Contrast = { readonly contrastive_loss: number; readonly similarity_margin: number };

test("CIT's paraphrases may be conversations, and its answers are learned under both", async () => {
  const turn = (role: string, content: string) => [{ role, content }];
  const chats = range(24).map((i) => ({
    prompt: turn("user", `What is ${i * i} + 1?`),
    paraphrase: turn("user", `Add 1 to ${i * i}:`),
    completion: turn("assistant", `${i * i + 1}`),
  }));
  const plain = await done(recipe(["cit"]));
  const path = place.project(recipe(["cit"]), { ...FILES, "paraphrases.jsonl": lines(chats) });
  expect((await place.mlora("run", path)).code).toBe(0);
  expect(leftOf(outputOf(path), "cit")).toEqual(leftOf(outputOf(plain), "cit"));
  // What the contrast is there for: with a weight that is next to nothing paraphrases are told apart less and less.
  const without = await done(recipe(["cit"]).replace("temperature = 0.1", "temperature = 0.1, lambda = 1e-6"));
  const [late, left] = [path, without].map((of) => steps(of, "cit").slice(-10)) as unknown as Contrast[][];
  const total = (of: Contrast[], key: keyof Contrast) => of.reduce((all, step) => all + step[key], 0);
  expect(total(late!, "contrastive_loss")).toBeLessThan(0.5 * total(left!, "contrastive_loss"));
  expect(total(late!, "similarity_margin")).toBeGreaterThan(2 * total(left!, "similarity_margin"));
});

test("conversations may stand for prompts: what both begin with is the prompt", async () => {
  const turn = (role: string, content: string) => ({ role, content });
  const chats = range(24).map((i) => {
    const before = [turn("user", `What is ${i * i} + 1?`)];
    const answered = (text: string) => [...before, turn("assistant", text)];
    return { chosen: answered(`${i * i + 1}`), rejected: answered(`It is ${i}, I think`) };
  });
  const plain = await done(recipe(["dpo"]));
  const path = place.project(recipe(["dpo"]), { ...FILES, "pairs.jsonl": lines(chats) });
  expect((await place.mlora("run", path)).code).toBe(0);
  expect(leftOf(outputOf(path), "dpo")).toEqual(leftOf(outputOf(plain), "dpo"));
});

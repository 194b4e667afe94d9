// Against TRL 1.16's own trainers, from rows of data to weights: the tokens that are fed, those that are learned, the loss of
// each step and what four steps make of the same adapter. docs/compatibility.md has the table.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadDataset } from "../../src/data/dataset.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import { openSafetensors } from "../../src/files/safetensors.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { sequencesOf } from "../../src/schedule/pack.ts";
import { metrics, Workplace } from "../helpers/program.ts";
import { withoutEmptyThoughts } from "../helpers/thoughts.ts";

const GOLDEN = join(import.meta.dir, "..", "golden", "trl116");
type Sequence = { readonly name: string; readonly ids: readonly number[]; readonly mask: readonly number[] };
type Step = { readonly loss: number; readonly grad_norm: number; readonly sequences: readonly Sequence[] };
type Task = { readonly rows: readonly object[]; readonly steps: readonly Step[] };
const golden = JSON.parse(readFileSync(join(GOLDEN, "golden.json"), "utf8")) as {
  readonly batch: number;
  readonly rate: number;
  readonly tasks: Readonly<Record<string, Task>>;
};

/** What a recipe says to get what TRL's trainer does by default. */
const SETTINGS: Readonly<Record<string, string>> = {
  "sft-chat-whole": 'train_on = "all"',
  dpo: 'objective = { name = "dpo", beta = 0.1 }',
  "dpo-plain": 'objective = { name = "dpo", beta = 0.3 }\nchat_template = false',
  "dpo-tools": 'objective = { name = "dpo", beta = 0.1 }',
  "sft-pairs": "chat_template = false",
  kto: 'objective = { name = "kto", beta = 0.1 }',
  orpo: 'objective = { name = "orpo", lambda = 0.1 }',
  cpo: 'objective = { name = "cpo", beta = 0.1, alpha = 1 }',
  simpo: 'objective = { name = "simpo", beta = 2, gamma = 1 }',
};

const work = new Workplace();
const model = join(work.root, "qwen");
beforeAll(() => {
  cpSync(join(GOLDEN, "model"), model, { recursive: true });
  const tokenizer = join(GOLDEN, "..", "tokenizers", "qwen3");
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) cpSync(join(tokenizer, file), join(model, file));
  cpSync(join(GOLDEN, "template.jinja"), join(model, "chat_template.jinja"));
});
afterAll(() => work[Symbol.dispose]());

function projectOf(name: string, { rows }: Task): string {
  const folder = join(work.root, name);
  mkdirSync(folder);
  writeFileSync(join(folder, "rows.jsonl"), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  const recipe = join(folder, "recipe.toml");
  writeFileSync(
    recipe,
    `[model]
path = "../qwen"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "a"
data = "rows.jsonl"
from = "${join(GOLDEN, "initial")}"
targets = "all-linear"
rank = 4
alpha = 8
dropout = 0
shuffle = false
steps = ${golden.tasks[name]!.steps.length}
batch_size = ${golden.batch}
learning_rate = ${golden.rate}
scheduler = "constant"
warmup = 0
weight_decay = 0.01
max_grad_norm = 1.0
${SETTINGS[name] ?? ""}
`,
  );
  return recipe;
}

/** TRL has its own version of Qwen 3's template, whose mask takes in the line break after the mark that ends a turn. */
const QWEN3 = "sft-qwen3";
const LINE_BREAK = 201;

/** A sequence up to its last learned token: what follows teaches nothing, and is left out here. */
const learnedPart = ({ ids, mask }: { readonly ids: ArrayLike<number>; readonly mask: ArrayLike<number> }) => {
  const learned = Array.from(mask, (value, i) => (i === 0 ? 0 : value)); // the first token is predicted from nothing
  const end = learned.lastIndexOf(1) + 1;
  return { ids: Array.from(ids).slice(0, end), mask: learned.slice(0, end) };
};

for (const [name, task] of Object.entries(golden.tasks).filter(([name]) => name !== QWEN3))
  describe(`TRL 1.16, ${name}`, () => {
    let recipe = "";
    beforeAll(() => {
      recipe = projectOf(name, task);
    });

    test("reads the same tokens and learns the same of them", () => {
      const tokenizer = loadTokenizer(model);
      const { train } = loadDataset(loadRecipe(recipe, {}).adapters[0]!, tokenizer, 10_000);
      // A step of TRL's has its sequences by name; the same rows come again in later epochs.
      const theirs = new Map<string, Sequence[]>();
      for (const { name, ...sequence } of task.steps.flatMap(({ sequences }) => sequences))
        theirs.set(name, [...(theirs.get(name) ?? []), { name, ...sequence }]);
      for (const [i, sample] of train.entries()) {
        const ours = name === "kto" ? [sample] : sequencesOf(sample);
        for (const [n, sequence] of ours.entries())
          expect(learnedPart(sequence)).toEqual(learnedPart([...theirs.values()][n]![i]!));
      }
      expect(train).toHaveLength(task.rows.length);
    });

    test("has the same losses, and the same weights after four steps", async () => {
      const { code, err } = await work.mlora("run", recipe);
      expect(err).not.toContain("error[");
      expect(code).toBe(0);
      const steps = metrics(join(recipe, "..", "out"), "step");
      expect(steps).toHaveLength(task.steps.length);
      for (const [i, { loss, grad_norm }] of task.steps.entries()) {
        expect(Math.abs(Number(steps[i]!["loss"]) / loss - 1)).toBeLessThan(1e-5);
        expect(Math.abs(Number(steps[i]!["grad_norm"]) / grad_norm - 1)).toBeLessThan(1e-4);
      }
      expect(
        distance(join(recipe, "..", "out", "a", "adapter_model.safetensors"), join(GOLDEN, `${name}.safetensors`)),
      ).toBeLessThan(1e-5);
    });
  });

test("of Qwen 3's template TRL also learns the line break after an end mark, and empty think blocks", () => {
  const folder = join(work.root, "qwen3-template");
  cpSync(model, folder, { recursive: true });
  cpSync(join(GOLDEN, "qwen3.jinja"), join(folder, "chat_template.jinja"));
  const tokenizer = loadTokenizer(folder);
  const task = golden.tasks[QWEN3]!;
  const { train } = loadDataset(loadRecipe(projectOf(QWEN3, task), {}).adapters[0]!, tokenizer, 10_000);
  const theirs = task.steps.flatMap(({ sequences }) => sequences);
  const isAfterEnd = (ids: readonly number[], i: number) => ids[i] === LINE_BREAK && ids[i - 1] === tokenizer.eos;
  let more = 0;
  for (const [i, { ids, mask }] of theirs.entries()) {
    more += ids.filter((_, at) => isAfterEnd(ids, at) && mask[at] === 1).length;
    const answers = mask.map((value, at) => (isAfterEnd(ids, at) ? 0 : value));
    const without = withoutEmptyThoughts(ids, answers, tokenizer);
    expect(learnedPart(train[i % train.length]!)).toEqual(learnedPart({ ids, mask: without }));
  }
  expect(more).toBeGreaterThan(0);
});

/** Relative distance of all weights together, in the Euclidean norm. */
function distance(ours: string, theirs: string): number {
  const [a, b] = [weightsIn(ours), weightsIn(theirs)];
  expect([...a.keys()].sort()).toEqual([...b.keys()].sort());
  let [apart, size] = [0, 0];
  for (const [key, values] of b)
    for (const [i, value] of values.entries()) {
      apart += (a.get(key)![i]! - value) ** 2;
      size += value ** 2;
    }
  return Math.sqrt(apart / size);
}

function weightsIn(path: string): Map<string, Float32Array> {
  using file = openSafetensors(path);
  return new Map(
    [...file.tensors].map(([name, { bytes }]) => {
      const raw = new Uint8Array(bytes);
      file.readInto(name, raw);
      return [name, new Float32Array(raw.buffer)];
    }),
  );
}

// Recipes and data of adapters that learn preferences, each objective another way.

import { sums } from "./program.ts";

export const lines = (rows: readonly object[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");
export const range = (n: number) => Array.from({ length: n }, (_, i) => i);
export const FILES = {
  "rows.jsonl": sums(20),
  "pairs.jsonl": lines(
    range(24).map((i) => ({ prompt: `What is ${i * i} + 1?`, chosen: `${i * i + 1}`, rejected: `It is ${i}, I think` })),
  ),
  "labels.jsonl": lines(
    range(24).map((i) => ({
      prompt: `What is ${i} + 1?`,
      completion: i % 3 ? `${i + 1}` : "I do not know",
      label: i % 3 !== 0,
    })),
  ),
  "paraphrases.jsonl": lines(
    range(24).map((i) => ({ prompt: `What is ${i * i} + 1?`, paraphrase: `Add 1 to ${i * i}:`, completion: `${i * i + 1}` })),
  ),
};

const OBJECTIVES: Readonly<Record<string, string>> = {
  dpo: '{ name = "dpo", beta = 0.5 }',
  smooth: '{ name = "dpo", beta = 0.3, label_smoothing = 0.1, reference = "base" }',
  ipo: '{ name = "dpo", loss = "ipo", beta = 0.2 }',
  hinge: '{ name = "dpo", loss = "hinge" }',
  cpo: '"cpo"',
  simpo: '{ name = "simpo", gamma = 0.5 }',
  orpo: '"orpo"',
  kto: '{ name = "kto", beta = 0.3, undesirable = 1.5 }',
  sft: '"sft"',
  cit: '{ name = "cit", temperature = 0.1 }',
  apo_zero: '{ name = "apo_zero", beta = 0.4, reference = "base" }',
};
export const NAMES = Object.keys(OBJECTIVES);

/** All of them train on `device`; `run` and `more` are further keys of the run and of every adapter. */
export const recipe = (names: readonly string[], run = "", more = "", device = "cpu"): string => `[model]
path = "../model"
[run]
output = "out"
device = "${device}"
tokens_per_microbatch = 150
${run}
${names
  .map((name) => {
    const i = NAMES.indexOf(name);
    const file = name === "sft" ? "rows" : name === "kto" ? "labels" : name === "cit" ? "paraphrases" : "pairs";
    return `[[adapter]]
name = "${name}"
objective = ${OBJECTIVES[name]}
data = { train = "${file}.jsonl", split = 0.25 }
rank = ${[4, 8, 3, 16, 5, 2, 7, 6, 1, 9, 4][i]}
dropout = ${i % 2 ? 0.1 : 0}
batch_size = ${[3, 2, 4][i % 3]}
accumulation = ${[1, 2][i % 2]}
learning_rate = 3e-3
eval_every = 7
steps = ${18 + i}
${more}`;
  })
  .join("\n")}`;

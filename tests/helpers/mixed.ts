// A run of all that can be mixed: kinds, objectives and optimizers next to each other, ranks from 3 to 256. The table is the
// list: what is new gets a line there, and tests/cpu/mixed.test.ts and tests/gpu/mixed.test.ts hold it against its run alone.

import { stringify } from "smol-toml";
import { FILES } from "./preferences.ts";

type Settings = Readonly<Record<string, unknown>> & { readonly rank: number; readonly data: keyof typeof FILES };

/** An adapter's own keys, by its name; what they leave out is in `common`. */
export const MIXED: Readonly<Record<string, Settings>> = {
  sft: { data: "rows.jsonl", rank: 4, targets: ["q_proj", "v_proj"] },
  rslora: { data: "rows.jsonl", rank: 256, rslora: true, init: "gaussian", learning_rate: 1e-3 },
  sgd: { data: "rows.jsonl", rank: 12, optimizer: "sgd", momentum: 0.9, weight_decay: 0.01, learning_rate: 0.05 },
  nesterov: {
    data: "pairs.jsonl",
    rank: 24,
    objective: { name: "dpo", beta: 0.4 },
    ...{ optimizer: "sgd", momentum: 0.8, nesterov: true, learning_rate: 0.1, max_grad_norm: false },
  },
  dpo: { data: "pairs.jsonl", rank: 64, objective: { name: "dpo", beta: 0.5 }, dropout: 0.1 },
  ipo: { data: "pairs.jsonl", rank: 5, objective: { name: "dpo", loss: "ipo", beta: 0.2, reference: "base" } },
  cpo: { data: "pairs.jsonl", rank: 16, objective: "cpo", targets: ["o_proj", "gate_proj", "up_proj"] },
  simpo: { data: "pairs.jsonl", rank: 48, objective: { name: "simpo", gamma: 0.5 }, init: "orthogonal" },
  orpo: { data: "pairs.jsonl", rank: 8, objective: "orpo", weight_decay: 0.1, accumulation: 3 },
  kto: { data: "labels.jsonl", rank: 32, objective: { name: "kto", beta: 0.3, undesirable: 1.5 }, batch_size: 4 },
  cit: { data: "paraphrases.jsonl", rank: 20, objective: { name: "cit", temperature: 0.2, pooling: "mean" }, batch_size: 4 },
  plus: { data: "rows.jsonl", rank: 10, lora_plus_ratio: 8, learning_rate: 1e-3 },
  dora: { data: "rows.jsonl", rank: 16, method: "dora", dropout: 0.1, learning_rate: 2e-3 },
  preferring: { data: "pairs.jsonl", rank: 7, method: "dora", objective: "dpo", targets: ["q_proj", "down_proj"] },
  vera: { data: "rows.jsonl", rank: 40, method: "vera", learning_rate: 2e-2, projection_seed: 7 },
  judged: {
    data: "pairs.jsonl",
    rank: 9,
    method: "vera",
    objective: "dpo",
    targets: ["k_proj", "o_proj"],
    learning_rate: 5e-2,
  },
  pissa: { data: "rows.jsonl", rank: 11, init: "pissa", dropout: 0, learning_rate: 2e-3 },
  rounds: {
    data: "pairs.jsonl",
    rank: 4,
    init: "pissa_niter_4",
    objective: "orpo",
    dropout: 0,
    targets: ["v_proj", "down_proj"],
  },
  olora: { data: "labels.jsonl", rank: 6, init: "olora", objective: "kto", dropout: 0, batch_size: 4, learning_rate: 2e-3 },
  places: {
    data: "rows.jsonl",
    rank: 6,
    targets: ".*\\.(0\\.self_attn\\.[qv]|1\\.self_attn\\.o|\\d\\.mlp\\.down)_proj",
    ...{ rank_pattern: { "1\\..*": 13, v_proj: 2 }, alpha_pattern: { q_proj: 7 }, dropout: 0.1 },
  },
  narrow: { data: "pairs.jsonl", rank: 3, objective: "dpo", method: "dora", layers: "1-1", exclude: ["k_proj"] },
  eight: { data: "rows.jsonl", rank: 14, optimizer: "adamw-8bit", weight_decay: 0.05, lora_plus_ratio: 4, dropout: 0.1 },
  lengths: { data: "pairs.jsonl", rank: 5, method: "dora", objective: "dpo", optimizer: "adamw-8bit", learning_rate: 5e-3 },
  vectors: { data: "rows.jsonl", rank: 33, method: "vera", optimizer: "adamw-8bit", learning_rate: 2e-2, betas: [0.8, 0.99] },
  plain: { data: "rows.jsonl", rank: 6, optimizer: "sgd", learning_rate: 0.2, scheduler: "constant", accumulation: 2 },
};

export const MIXED_NAMES = Object.keys(MIXED);
export const MIXED_FILES = FILES;

/** `names` of them in one run; `run` and `precision` are further keys of the recipe. */
export const mixedRecipe = (names: readonly string[], device: string, run: object = {}, precision = "auto"): string =>
  stringify({
    model: { path: "../model", precision },
    run: { output: "out", device, tokens_per_microbatch: 150, ...run },
    adapter: names.map((name) => {
      const i = MIXED_NAMES.indexOf(name);
      const { data, ...own } = MIXED[name]!;
      const common = {
        learning_rate: 3e-3,
        dropout: i % 3 === 1 ? 0.05 : 0,
        batch_size: 2 + (i % 3),
        steps: 9 + (i % 4),
        eval_every: 5,
      };
      return { name, data: { train: data, split: 0.25 }, ...common, ...own };
    }),
  });

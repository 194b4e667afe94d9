// The recipe as it stands in the TOML: every key, its type and its limits. snake_case, as in the file.

import * as v from "valibot";
import { between, finite, oneOf, positive, show, text, truth, wants, whole } from "../base/check.ts";
import { compilePattern, PatternError } from "../base/pattern.ts";
import { PRECISIONS } from "../base/precision.ts";
import { INITS, type Init, isInit } from "../methods/init.ts";
import { MOST_RANK } from "../methods/layout.ts";
import { METHODS } from "../methods/registry.ts";
import { OBJECTIVE_NAMES, objectiveTables } from "../objectives/registry.ts";
import { FORMATS } from "./recipe.ts";

const SEED = 2 ** 32 - 1;
const MANY = 1e9;
const MOST_STAGES = 256;
const MOST_SLOTS = 4096;

const paths = v.union(
  [text, v.pipe(v.array(text), v.minLength(1, "wants at least one file"))],
  wants("a file or a list of files"),
);

export const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;
const name = v.pipe(
  v.string(wants("a text")),
  v.regex(NAME, (issue) => `names a folder: wants letters, digits, '_' and '-', at most 64, found ${show(issue.input)}`),
);

/** A regular expression that Python and JavaScript read alike. */
const pattern = (match: "whole" | "end") =>
  v.pipe(
    text,
    v.rawCheck(({ dataset, addIssue }) => {
      if (!dataset.typed) return;
      try {
        compilePattern(dataset.value, match);
      } catch (error) {
        if (!(error instanceof PatternError)) throw error;
        addIssue({ message: `"${dataset.value}": ${error.message}` });
      }
    }),
  );
const patternTable = <T extends v.GenericSchema<number>>(value: T) =>
  v.pipe(
    v.record(pattern("end"), value, wants("a table of regular expressions and numbers")),
    v.check((table) => Object.keys(table).length > 0, "wants at least one pattern"),
  );
const MOST_LAYERS = 9999;
const layerRange = v.pipe(
  text,
  v.regex(/^\d{1,4}-\d{1,4}$/, wants('the first and the last layer, as "8-23"')),
  v.check((range) => {
    const [from, to] = range.split("-").map(Number);
    return from! <= to!;
  }, "wants the first layer before the last"),
);
/** What a chat template is given of a row itself. */
const RESERVED = ["messages", "add_generation_prompt"];

const NAMES = OBJECTIVE_NAMES.map((name) => `"${name}"`).join(" or ");

/** What an adapter may say but its name, its data's sweep among it; and so what [defaults] may say. */
export const adapterEntries = {
  data: v.union(
    [
      paths,
      v.strictObject({
        train: paths,
        eval: v.exactOptional(paths),
        split: v.exactOptional(between(0, 1)),
      }),
    ],
    wants("a file, a list of files, or { train, eval, split }"),
  ),
  format: oneOf(...FORMATS),
  template: v.strictObject({ prompt: text, completion: text }, wants("{ prompt, completion }")),
  chat_template: v.union([truth, text], wants("true, false or the file of a template")),
  chat_template_kwargs: v.pipe(
    v.record(v.string(), v.unknown(), wants("a table")),
    v.check((table) => !RESERVED.some((name) => name in table), `may not hold ${RESERVED.join(" or ")}`),
  ),
  thoughts: oneOf("as-template", "every-turn", "drop"),
  system: text,
  train_on: oneOf("completion", "all"),
  objective: v.union(
    [oneOf(...OBJECTIVE_NAMES), v.variant("name", objectiveTables, wants(NAMES))],
    wants(`${NAMES}, or a table with one of them as name`),
  ),
  method: oneOf(...METHODS),
  rank: whole(1, MOST_RANK),
  alpha: positive(),
  dropout: between(0, 1),
  rslora: truth,
  lora_plus_ratio: positive(),
  projection_seed: whole(0, SEED),
  d_initial: positive(),
  init: v.custom<Init>(
    (text) => typeof text === "string" && isInit(text),
    wants(`${INITS.map((name) => `"${name}"`).join(" or ")} or "pissa_niter_4"`),
  ),
  targets: v.union(
    [v.literal("all-linear"), v.pipe(v.array(text), v.minLength(1, "wants at least one linear layer")), pattern("whole")],
    wants('"all-linear", a list of linear layers or a regular expression'),
  ),
  exclude: v.union(
    [v.pipe(v.array(text), v.minLength(1, "wants at least one module")), pattern("whole")],
    wants("a list of modules or a regular expression"),
  ),
  layers: v.union(
    [v.pipe(v.array(whole(0, MOST_LAYERS)), v.minLength(1, "wants at least one layer")), layerRange],
    wants('a list of layers, or the first and the last as "8-23"'),
  ),
  rank_pattern: patternTable(whole(1, MOST_RANK)),
  alpha_pattern: patternTable(positive()),
  from: text,
  optimizer: oneOf("adamw", "sgd"),
  learning_rate: positive(),
  betas: v.tuple([between(0, 1), between(0, 1)], wants("two numbers from 0 to below 1")),
  eps: positive(),
  momentum: between(0, 1),
  nesterov: truth,
  weight_decay: v.pipe(finite("a number, 0 or more"), v.minValue(0, wants("a number, 0 or more"))),
  max_grad_norm: v.union([v.literal(false), positive()], wants("a number above 0, or false")),
  scheduler: oneOf("constant", "linear", "cosine"),
  warmup: v.pipe(finite("a number, 0 or more"), v.minValue(0, wants("a share below 1 or a number of steps"))),
  min_lr_ratio: v.pipe(
    finite("a number from 0 to 1"),
    v.minValue(0, wants("a number from 0 to 1")),
    v.maxValue(1, wants("a number from 0 to 1")),
  ),
  epochs: positive(),
  steps: whole(1, MANY),
  batch_size: whole(1, 65536),
  accumulation: whole(1, 65536),
  max_length: whole(2, 1 << 24),
  overlong: oneOf("truncate", "drop"),
  shuffle: truth,
  seed: whole(0, SEED),
  eval_every: whole(1, MANY),
  patience: whole(1, MANY),
  min_delta: v.pipe(finite("a number, 0 or more"), v.minValue(0, wants("a number, 0 or more"))),
  halving: v.strictObject(
    {
      rung: whole(1, MANY),
      keep: v.pipe(between(0, 1), v.gtValue(0, wants("a share above 0 and below 1"))),
      group: v.exactOptional(text),
    },
    wants("{ rung, keep }"),
  ),
  priority: whole(-1000, 1000),
};
export type AdapterKey = keyof typeof adapterEntries;
export const ADAPTER_KEYS = Object.keys(adapterEntries) as AdapterKey[];

const optionalEntries = <T extends v.ObjectEntries>(entries: T) =>
  Object.fromEntries(Object.entries(entries).map(([key, schema]) => [key, v.exactOptional(schema)])) as {
    [K in keyof T]: v.ExactOptionalSchema<T[K], undefined>;
  };

const Defaults = v.strictObject(optionalEntries(adapterEntries));
export type DefaultsTable = v.InferOutput<typeof Defaults>;

/** Lists over any of an adapter's values; each element is checked when the adapter it makes is. */
const Sweep = v.record(
  v.string(),
  v.pipe(v.array(v.unknown(), wants("a list of values")), v.minLength(1, "wants at least one value")),
);

const Adapter = v.strictObject({ name, sweep: v.exactOptional(Sweep), ...optionalEntries(adapterEntries) });
export type AdapterTable = v.InferOutput<typeof Adapter>;

export const RecipeTable = v.strictObject({
  model: v.strictObject({ path: text, precision: v.optional(oneOf(...PRECISIONS)) }, (issue) =>
    issue.input === undefined ? "is missing: it says where the base model is" : `wants a table, found ${show(issue.input)}`,
  ),
  run: v.strictObject(
    {
      output: text,
      seed: v.optional(whole(0, SEED)),
      device: v.optional(oneOf("auto", "cpu", "cuda")),
      tokens_per_microbatch: v.optional(whole(1, 1 << 24)),
      recomputation: v.optional(oneOf("auto", "none", "selective", "full")),
      restarts: v.optional(whole(0, 1000)),
      slots: v.optional(
        v.union([v.literal("auto"), whole(1, MOST_SLOTS)], wants(`"auto" or a number from 1 to ${MOST_SLOTS}`)),
      ),
      checkpoint: v.optional(
        v.union(
          [
            v.literal(false),
            v.strictObject({
              steps: v.exactOptional(whole(1, MANY)),
              minutes: v.exactOptional(positive()),
              keep: v.exactOptional(whole(1, 1000)),
            }),
          ],
          wants("false or { steps, minutes, keep }"),
        ),
      ),
      stages: v.optional(
        v.union(
          [v.literal("auto"), whole(1, MOST_STAGES), v.pipe(v.array(whole(1, MANY)), v.minLength(1), v.maxLength(MOST_STAGES))],
          wants(`"auto", a number of stages from 1 to ${MOST_STAGES}, or a list of the layers of each stage`),
        ),
      ),
    },
    wants("a table"),
  ),
  defaults: v.exactOptional(Defaults),
  adapter: v.pipe(
    v.array(Adapter, "is missing: a recipe has at least one [[adapter]]"),
    v.minLength(1, "is empty: a recipe has at least one [[adapter]]"),
  ),
});
export type RecipeTable = v.InferOutput<typeof RecipeTable>;

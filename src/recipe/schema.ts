// The recipe as it stands in the TOML: every key, its type and its limits. snake_case, as in the file.

import * as v from "valibot";
import {
  about,
  between,
  command,
  expected,
  finite,
  listed,
  listOf,
  modelPlace,
  notNegative,
  oneOf,
  pattern,
  place,
  positive,
  seed,
  show,
  table,
  tableOf,
  text,
  truth,
  webAddress,
  whole,
} from "../base/check.ts";
import { PRECISIONS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import type { Output } from "../base/schema.ts";
import { MOST_RANK } from "../methods/layout.ts";
import { OPTIMIZERS } from "../methods/optimizers.ts";
import { DEFINITIONS, ownEntries, PEFT_METHODS } from "../methods/registry.ts";
import { OBJECTIVE_NAMES, objectiveTables } from "../objectives/registry.ts";
import { paths, repo } from "./source-schema.ts";

const MANY = 1e9;
/** What a notification may be about. */
export const NOTIFIED = ["done", "failed", "stopped", "adapter", "restarted"] as const;
const MOST_STAGES = 256;
/** Of a stage. */
const layers = v.pipe(
  finite("a number of layers, whole or with .5"),
  v.minValue(0.5, expected("half a layer or more")),
  v.maxValue(MANY, expected(`at most ${MANY} layers`)),
  v.multipleOf(0.5, expected("a number of layers, whole or with .5")),
);
const MOST_SLOTS = 4096;

/** Also of a server. */
export const stages = v.union(
  [v.literal("auto"), whole(1, MOST_STAGES), listOf(layers, MOST_STAGES)],
  expected(`"auto", a number of stages from 1 to ${MOST_STAGES}, or a list of the layers of each stage, whole or halves`),
);

export const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;
const name = v.pipe(
  v.string(expected("a string")),
  v.regex(NAME, (issue) => `names a folder: expected letters, digits, '_' and '-', at most 64, found ${show(issue.input)}`),
);

const SHARE_OR_STEPS = "a share below 1 or a whole number of steps";
const warmup = v.pipe(
  finite(SHARE_OR_STEPS),
  v.minValue(0, expected(SHARE_OR_STEPS)),
  v.check((of) => of < 1 || Number.isInteger(of), expected(SHARE_OR_STEPS)),
);
const MOST_LAYERS = 9999;
const layerRange = v.pipe(
  text,
  v.regex(/^\d{1,4}-\d{1,4}$/, expected('the first and the last layer, as "8-23"')),
  v.check((range) => {
    const [from, to] = range.split("-").map(Number);
    return from! <= to!;
  }, expected("the first layer before the last")),
);
/** Variables that a chat template gets from the row. */
const RESERVED = ["messages", "add_generation_prompt"];

const NAMES = OBJECTIVE_NAMES.map((name) => `"${name}"`).join(" or ");

/** The rank of an adapter that gives none: LoRA's, and those of methods that differ. */
const ranks = PEFT_METHODS.map((method) => DEFINITIONS[method])
  .filter(({ rank }, i, [lora]) => i === 0 || rank !== lora!.rank)
  .map(({ rank, title }, i) => (i === 0 ? `${rank}` : `of a ${title} ${rank}`))
  .join(", ");

/** The keys of [defaults], and those of an adapter except its name and sweep. */
export const adapterEntries = {
  data: about(
    v.union(
      [
        paths,
        table({
          train: paths,
          eval: v.exactOptional(paths),
          split: v.exactOptional(between(0, 1)),
          stop: v.exactOptional(oneOf("first_exhausted", "all_exhausted")),
          shares: v.exactOptional(oneOf("rows", "tokens")),
        }),
      ],
      expected("a file, a list of files, or { train, eval, split }"),
    ),
    "rows: files, patterns, addresses, or a table; `eval` is held out, or the share `split` of the rows is",
  ),
  format: about(
    oneOf("auto", "messages", "prompt-completion", "text", "alpaca", "template"),
    'the form of the rows; "auto" goes by their fields',
    "auto",
  ),
  columns: about(
    v.pipe(
      tableOf(v.string(), text, "a table of fields and the columns that hold them"),
      v.check(
        (columns) => new Set(Object.values(columns)).size === Object.keys(columns).length,
        "names one column for two fields",
      ),
    ),
    'columns of the rows that hold fields of other names, as `{ prompt = "question", completion = "answer" }`',
    {},
  ),
  template: about(
    table({ prompt: text, completion: text }, "{ prompt, completion }"),
    'Jinja texts of prompt and completion over the fields of a row, as "{{ question }}"; for `format = "template"`',
  ),
  chat_template: about(
    v.union([truth, place], expected("true, false or the file of a template")),
    "whether rows go through the chat template; a path: that template in place of the model's",
    true,
  ),
  chat_template_kwargs: about(
    v.pipe(
      tableOf(v.string(), v.unknown()),
      v.check((variables) => !RESERVED.some((name) => Object.hasOwn(variables, name)), `may not hold ${RESERVED.join(" or ")}`),
    ),
    "variables for the template, by name; a row's own win",
    {},
  ),
  thoughts: about(
    oneOf("as-template", "every-turn", "drop"),
    "which turns are trained with their thoughts: those that the template keeps, all, or none",
    "as-template",
  ),
  system: about(text, "the system message of every row that has none"),
  train_on: about(oneOf("completion", "all"), "whether answers are learned, or prompts, too", "completion"),
  objective: about(
    v.union(
      [oneOf(...OBJECTIVE_NAMES), v.variant("name", objectiveTables, expected(NAMES))],
      expected(`${NAMES}, or a table with one of them as name`),
    ),
    "what is learned from the rows: a name, or a table with one and its keys",
    "sft",
  ),
  method: about(
    oneOf(...PEFT_METHODS),
    listed(
      PEFT_METHODS.map((name) => DEFINITIONS[name].title),
      "or",
    ),
    "lora",
  ),
  rank: about(whole(1, MOST_RANK), `rank of the low-rank product: ${ranks}, where nothing is said`),
  dropout: about(between(0, 1), "share of the inputs of low-rank products that is dropped", 0),
  ...ownEntries,
  targets: about(
    v.union(
      [
        v.literal("all-linear"),
        v.pipe(v.array(text), v.minLength(1, "is empty, expected at least one linear layer")),
        pattern("whole"),
      ],
      expected('"all-linear", a list of linear layers or a regular expression'),
    ),
    '"all-linear", a list of linear layers, or a regular expression of whole module paths',
    "all-linear",
  ),
  exclude: about(
    v.union(
      [v.pipe(v.array(text), v.minLength(1, "is empty, expected at least one module")), pattern("whole")],
      expected("a list of modules or a regular expression"),
    ),
    "modules that are left out, as in targets",
  ),
  layers: about(
    v.union(
      [v.pipe(v.array(whole(0, MOST_LAYERS)), v.minLength(1, "is empty, expected at least one layer")), layerRange],
      expected('a list of layers, or the first and the last as "8-23"'),
    ),
    'the only layers: a list, or the first and the last as "8-23"',
  ),
  from: about(place, "a folder of a PEFT adapter to continue"),
  optimizer: about(
    oneOf(...OPTIMIZERS),
    "AdamW or SGD as PyTorch computes them, or AdamW with moments of 8 bits in place of 32",
    "adamw",
  ),
  learning_rate: about(positive(), "the highest learning rate of the schedule", 2e-4),
  betas: about(
    v.tuple([between(0, 1), between(0, 1)], expected("two numbers from 0 to below 1")),
    "AdamW: decay of the two moments",
    [0.9, 0.999],
  ),
  eps: about(positive(), "AdamW: added to the root of the second moment", 1e-8),
  momentum: about(between(0, 1), "SGD: decay of the momentum", 0),
  nesterov: about(truth, "SGD: looks ahead by the momentum", false),
  weight_decay: about(notNegative, "AdamW: decoupled weight decay; SGD: added to the gradient, as in PyTorch", 0),
  max_grad_norm: about(
    v.union([v.literal(false), positive()], expected("a number above 0, or false")),
    "the norm that the adapter's own gradient is clipped to; false: none",
    1,
  ),
  scheduler: about(oneOf("constant", "linear", "cosine"), "how the learning rate falls", "linear"),
  warmup: about(
    warmup,
    "steps in which the learning rate rises; below 1 a share of all, and none where that is less than one step",
    0.03,
  ),
  min_lr_ratio: about(
    v.pipe(
      finite("a number from 0 to 1"),
      v.minValue(0, expected("a number from 0 to 1")),
      v.maxValue(1, expected("a number from 0 to 1")),
    ),
    "what the learning rate falls to, as a share of the highest",
    0,
  ),
  epochs: about(
    v.pipe(positive(), v.maxValue(MANY, expected(`a number above 0, up to ${MANY}`))),
    "passes over the rows; may be a fraction",
  ),
  steps: about(whole(1, MANY), "optimizer steps, in place of epochs"),
  batch_size: about(whole(1, 65536), "rows of a batch", 4),
  accumulation: about(whole(1, 65536), "batches of an optimizer step", 1),
  max_length: about(whole(2, 1 << 24), "tokens of a row", 1024),
  overlong: about(oneOf("truncate", "drop"), "what happens to longer rows", "truncate"),
  shuffle: about(truth, "whether each epoch has an order of its own", true),
  seed: about(seed, "the adapter's own seed, in place of one made from the run's and its name"),
  eval_every: about(whole(1, MANY), "steps between two evaluations on held-out rows"),
  patience: about(whole(1, MANY), "evaluations without a lower loss after which the adapter ends"),
  min_delta: about(
    notNegative,
    "by how much a loss has to be lower for patience to count it; the lowest is saved all the same",
    0,
  ),
  metrics: about(
    table(
      {
        command,
        best: v.exactOptional(text),
        goal: v.exactOptional(oneOf("max", "min")),
        seconds: v.exactOptional(positive()),
      },
      "{ command, best, goal, seconds }",
    ),
    "a program that gets the adapter's folder at each evaluation and prints numbers as JSON; the best by one is saved",
  ),
  halving: about(
    table(
      {
        rung: whole(1, MANY),
        keep: v.pipe(between(0, 1), v.gtValue(0, expected("a share above 0 and below 1"))),
        group: v.exactOptional(text),
      },
      "{ rung, keep }",
    ),
    "of a sweep: every `rung` steps the share `keep` of its adapters continues",
  ),
  priority: about(
    whole(-1000, 1000),
    "where not all adapters fit, higher ones are trained first and take the place of lower ones",
    0,
  ),
};
type Entries = typeof adapterEntries;
export type AdapterKey = keyof Entries;
export const ADAPTER_KEYS = Object.keys(adapterEntries) as AdapterKey[];

/** Keys with a default. */
export type DefaultKey = { [K in AdapterKey]: Entries[K] extends { readonly type: "optional" } ? K : never }[AdapterKey];
/** They hold where neither the adapter nor [defaults] has the key. */
export const DEFAULTS = Object.fromEntries(
  ADAPTER_KEYS.flatMap((key) => {
    const value = v.getDefault<v.GenericSchema>(adapterEntries[key]);
    return value === undefined ? [] : [[key, value as unknown]];
  }),
) as { readonly [K in DefaultKey]: v.InferOutput<Entries[K]> };

/** A table has only the keys that it is given: defaults come after [defaults]. */
const optionalEntries = <T extends v.ObjectEntries>(entries: T) =>
  Object.fromEntries(Object.entries(entries).map(([key, schema]) => [key, v.exactOptional(schema)])) as {
    [K in keyof T]: v.ExactOptionalSchema<T[K], undefined>;
  };

const Defaults = table(optionalEntries(adapterEntries));
export type DefaultsTable = Output<typeof Defaults>;

/** Lists over any of an adapter's values; each element is checked when the adapter it makes is. */
const Sweep = tableOf(
  v.string(),
  v.pipe(v.array(v.unknown(), expected("a list of values")), v.minLength(1, "is empty, expected at least one value")),
  "a table of keys and lists of values",
);

const Adapter = table({
  name: about(name, "its folder in the run's output"),
  sweep: v.exactOptional(about(Sweep, "lists over any keys that the adapter leaves out: an adapter for each combination")),
  ...optionalEntries(adapterEntries),
});
export type AdapterTable = Output<typeof Adapter>;

export const RecipeTable = v.strictObject({
  model: table(
    {
      path: v.exactOptional(
        about(modelPlace, "a Hugging Face folder of the base model, or a GGUF file; paths are relative to the recipe"),
      ),
      name: v.exactOptional(about(repo, 'the base model on the Hugging Face hub, as "org/name", in place of path')),
      revision: v.exactOptional(about(text, "a branch, tag or commit of the model that name names; main where none is given")),
      precision: about(
        oneOf(...PRECISIONS),
        'fp32 on a CPU, bf16 on a GPU; "bf16" multiplies so on a CPU that has AVX512-BF16, "prefer-bf16" where that takes less time, else as "auto"; "int8", "nf4" and "fp8" hold the base in fewer bits; "nf4-fp8" multiplies nf4 as fp8',
        "auto",
      ),
    },
    "a table, or the base model's name or path",
  ),
  run: table({
    output: about(place, "the run's own folder; each adapter gets a folder in it"),
    seed: about(seed, "the same seed gives the same adapters", 42),
    device: about(oneOf("auto", "cpu", "cuda"), '"auto" is a GPU where there is one that works', "auto"),
    tokens_per_microbatch: v.exactOptional(
      about(whole(1, 1 << 24), "tokens that go through the model at a time; more is faster and takes more memory"),
    ),
    recomputation: about(
      oneOf("auto", ...RECOMPUTATIONS),
      'which activations are computed again in the backward pass, for memory; "offload": all, and of a GPU what is left of them waits in host memory',
      "auto",
    ),
    tracking: about(
      v.array(oneOf("tensorboard", "wandb", "mlflow"), expected('a list of "tensorboard", "wandb" and "mlflow"')),
      "trackers of experiments: files in the run's folder, which for MLflow are sent to its server; [] for none",
      ["tensorboard"],
    ),
    notify: v.exactOptional(
      about(
        table(
          {
            command: v.exactOptional(command),
            url: v.exactOptional(webAddress),
            on: v.exactOptional(v.array(oneOf(...NOTIFIED))),
            below: v.exactOptional(finite("a number")),
          },
          "{ command, url, on, below }",
        ),
        "a program or an https address that gets JSON when the run is done, has failed, or a held-out loss is below a number",
      ),
    ),
    restarts: about(whole(0, 1000), "how often the stages are started again when one is gone", 3),
    slots: about(
      v.union([v.literal("auto"), whole(1, MOST_SLOTS)], expected(`"auto" or a number from 1 to ${MOST_SLOTS}`)),
      "adapters that train at once",
      "auto",
    ),
    resident_adapters: v.exactOptional(
      about(
        whole(1, MOST_SLOTS),
        "adapters that are on the device at once, of those that train; the others wait for their turn in host memory. Left out: as many as fit",
      ),
    ),
    checkpoint: v.exactOptional(
      about(
        v.union(
          [
            v.literal(false),
            table({
              steps: v.exactOptional(whole(1, MANY)),
              minutes: v.exactOptional(positive()),
              keep: v.exactOptional(whole(1, 1000)),
            }),
          ],
          expected("false or { steps, minutes, keep }"),
        ),
        "how often adapters are saved, and how many checkpoints are kept of each; false: never",
      ),
    ),
    stages: about(stages, "pipeline stages: a number, or the layers of each; N.5 ends after the attention of a layer", "auto"),
  }),
  defaults: v.exactOptional(Defaults),
  adapter: v.pipe(
    v.array(Adapter, ({ input }) =>
      input === undefined ? "is missing: a recipe has at least one [[adapter]]" : `is ${show(input)}: write [[adapter]]`,
    ),
    v.minLength(1, "is empty: a recipe has at least one [[adapter]]"),
  ),
});
export type RecipeTable = Output<typeof RecipeTable>;

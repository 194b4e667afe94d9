// A recipe from its file: parsed strictly, all faults told at once, each with its line and column.

import { readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parse, stringify, TomlError } from "smol-toml";
import * as v from "valibot";
import { RequestError, textOf } from "../base/errors.ts";
import { isSvdInit } from "../methods/init.ts";
import { MOST_RANK } from "../methods/layout.ts";
import { DEFINITIONS, OWN_KEYS, PEFT_METHODS } from "../methods/registry.ts";
import { isContrastive, OBJECTIVE_NAMES, type ObjectiveName, objectiveKeys, rowKindOf } from "../objectives/registry.ts";
import { type Path, Places } from "./places.ts";
import { type AdapterRecipe, CHECKPOINTS, type Overrides, type Recipe } from "./recipe.ts";
import { adapterTable, heldOut, resolveAdapter } from "./resolve.ts";
import { ADAPTER_KEYS, type AdapterTable, adapterEntries, type DefaultsTable, RecipeTable } from "./schema.ts";
import { nearest } from "./suggest.ts";
import { choicesOf, countChoices, MOST_ADAPTERS } from "./sweep.ts";

const MOST_BYTES = 16 << 20;

/** Something wrong, and where in the recipe. */
type Fault = { readonly path: Path; readonly message: string };

/** Reads and parses a recipe. Every RequestError names the file. */
export function loadRecipe(path: string, overrides: Overrides = {}): Recipe {
  return parseRecipe(readText(path), resolve(path), overrides);
}

function readText(path: string): string {
  const unreadable = (why: string) =>
    new RequestError("recipe.file", `${path}: ${why}`, "give the path of a recipe, a TOML file");
  try {
    const stat = statSync(path);
    if (!stat.isFile()) throw unreadable("is not a file");
    if (stat.size > MOST_BYTES) throw unreadable(`has ${stat.size} bytes, a recipe has at most ${MOST_BYTES}`);
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path));
  } catch (error) {
    if (error instanceof RequestError) throw error;
    const { code } = error as { code?: string };
    throw unreadable(code === "ENOENT" ? "no such file" : error instanceof TypeError ? "is not UTF-8 text" : textOf(error));
  }
}

/** The recipe that `text` is; `path` is absolute and names it in messages. */
export function parseRecipe(text: string, path: string, overrides: Overrides = {}): Recipe {
  const table = parseToml(text, path);
  const places = new Places(text);
  const faults: Fault[] = [];
  const parsed = v.safeParse(RecipeTable, table);
  if (!parsed.success) for (const issue of parsed.issues) faults.push(...faultsOf(issue));
  const adapters = parsed.success ? resolveAll(parsed.output, path, seedOf(overrides, parsed.output.run.seed), faults) : [];
  if (faults.length > 0) throw invalid(path, places, faults);
  const { model, run } = (parsed as { readonly output: RecipeTable }).output;
  const recipe: Recipe = {
    path,
    model: { path: resolve(dirname(path), model.path), precision: model.precision },
    run: {
      output: overrides.output === undefined ? resolve(dirname(path), run.output) : resolve(overrides.output),
      seed: seedOf(overrides, run.seed),
      device: deviceOf(overrides) ?? run.device,
      tokensPerMicrobatch: run.tokens_per_microbatch ?? null,
      recomputation: run.recomputation,
      stages: stagesOf(overrides) ?? run.stages,
      restarts: run.restarts,
      slots: run.slots === "auto" ? null : run.slots,
      checkpoint: checkpointOf(run.checkpoint),
    },
    adapters,
  };
  if (recipe.run.output === recipe.model.path)
    throw invalid(path, places, [{ path: ["run", "output"], message: "is the base model's own folder; choose another" }]);
  return recipe;
}

/** How often adapters are kept where the recipe does not say. */
const CHECKPOINT = { steps: null, minutes: 10, keep: 2 };

function checkpointOf(given: RecipeTable["run"]["checkpoint"]): Recipe["run"]["checkpoint"] {
  if (given === false) return null;
  if (given === undefined) return CHECKPOINT;
  const { steps = null, minutes = steps === null ? CHECKPOINT.minutes : null, keep = CHECKPOINT.keep } = given;
  return { steps, minutes, keep };
}

function parseToml(text: string, path: string): unknown {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw new RequestError("recipe.syntax", `${path}: ${textOf(error)}`);
    const [reason] = error.message.replace(/^Invalid TOML document: /, "").split("\n");
    throw new RequestError("recipe.syntax", `${path}:${error.line}:${error.column}: not TOML: ${reason}`);
  }
}

function invalid(file: string, places: Places, faults: readonly Fault[]): RequestError {
  const lines = faults.map(({ path, message }) => {
    const place = places.of(path);
    return { place, line: `${file}:${place.line}:${place.column}: ${dotted(path)}${message}` };
  });
  lines.sort((a, b) => a.place.line - b.place.line || a.place.column - b.place.column);
  return new RequestError("recipe.invalid", [...new Set(lines.map(({ line }) => line))].join("\n"));
}

/** ["adapter", 0, "rank"] as "adapter[0].rank ". */
const dotted = (path: Path): string =>
  path.length === 0
    ? ""
    : `${path.map((part, i) => (typeof part === "number" ? `[${part}]` : `${i > 0 ? "." : ""}${part}`)).join("")} `;

/** What a table may hold, for suggestions: the sections, or an adapter's keys. */
const SECTION_KEYS: Readonly<Record<string, readonly string[]>> = {
  "": ["model", "run", "defaults", "adapter"],
  model: ["path", "precision"],
  run: ["output", "seed", "device", "tokens_per_microbatch", "recomputation", "stages", "slots", "checkpoint", "restarts"],
  checkpoint: ["steps", "minutes", "keep"],
  halving: ["rung", "keep", "group"],
  data: ["train", "eval", "split"],
  template: ["prompt", "completion"],
};

/** The faults of an issue: of a choice between forms, those of the table when a table was given. */
function faultsOf(issue: v.BaseIssue<unknown>, before: Path = []): Fault[] {
  const path = [...before, ...(issue.path ?? []).map(({ key }) => key as string | number)];
  const isTable = typeof issue.input === "object" && issue.input !== null && !Array.isArray(issue.input);
  const inner = (issue.issues ?? []).filter(
    ({ kind, type, path: deeper }) => kind === "schema" && (type === "strict_object" || deeper),
  );
  if (issue.type === "union" && isTable && inner.length > 0) return inner.flatMap((one) => faultsOf(one, path));
  if (issue.type !== "strict_object" || !issue.path) return [{ path, message: issue.message }];
  if (issue.expected !== "never") return [{ path, message: issue.received === "undefined" ? "is missing" : issue.message }];
  const table = path.filter((part) => typeof part === "string").at(-2) ?? "";
  const own = path[0] === "adapter" ? ["name", "sweep", ...ADAPTER_KEYS] : ADAPTER_KEYS;
  const allowed =
    table === "objective"
      ? objectiveKeys((issue.path.at(-1)!.input as { readonly name: ObjectiveName }).name)
      : (SECTION_KEYS[table] ?? own);
  return [{ path, message: unknownKey(String(path.at(-1)), allowed) }];
}

function unknownKey(key: string, allowed: readonly string[]): string {
  const meant = nearest(key, allowed);
  return `is an unknown key${meant ? `; did you mean '${meant}'?` : `; known are ${allowed.join(", ")}`}`;
}

function resolveAll(table: RecipeTable, path: string, seed: number, faults: Fault[]): AdapterRecipe[] {
  const defaults: DefaultsTable = table.defaults ?? {};
  checkLength(defaults, ["defaults"], faults);
  const total = table.adapter.reduce((sum, adapter) => sum + countChoices(adapter), 0);
  if (total > MOST_ADAPTERS) {
    faults.push({ path: ["adapter"], message: `and its sweeps make ${total} adapters; a recipe has at most ${MOST_ADAPTERS}` });
    return [];
  }
  const taken = new Map<string, Path>();
  return table.adapter
    .flatMap((adapter, index) => {
      const at: Path = ["adapter", index];
      checkSweep(adapter, at, faults);
      return choicesOf(adapter).map(({ name, values }) => {
        const { sweep: _, ...own } = adapter;
        const one = { ...own, ...values, name } as AdapterTable;
        checkName(name, [...at, adapter.sweep ? "sweep" : "name"], taken, faults);
        checkLength(one, at, faults);
        checkTogether(one, defaults, adapter.sweep, at, faults);
        return faults.length > 0 ? [] : [resolveAdapter(one, defaults, path, seed, adapter.name)];
      });
    })
    .flat();
}

/** A sweep's values obey the same rules as the keys they stand for. */
function checkSweep(adapter: AdapterTable, at: Path, faults: Fault[]): void {
  for (const [key, values] of Object.entries(adapter.sweep ?? {})) {
    const path = [...at, "sweep", key];
    if (!Object.hasOwn(adapterEntries, key)) faults.push({ path, message: unknownKey(key, ADAPTER_KEYS) });
    else if (Object.hasOwn(adapter, key)) faults.push({ path, message: "is in the sweep and in the adapter; leave one out" });
    else
      for (const [i, value] of values.entries()) {
        const result = v.safeParse(adapterEntries[key as keyof typeof adapterEntries] as v.GenericSchema, value);
        if (!result.success) faults.push(...result.issues.flatMap((issue) => faultsOf(issue, [...path, i])));
      }
  }
}

function checkName(name: string, path: Path, taken: Map<string, Path>, faults: Fault[]): void {
  const folded = name.toLowerCase(); // some file systems do not tell them apart
  if (name.length > 64) faults.push({ path, message: `makes the name '${name}' of ${name.length} characters; at most 64` });
  if (folded === CHECKPOINTS) faults.push({ path, message: `'${name}' is where a run keeps its checkpoints; give it another` });
  if (taken.has(folded)) faults.push({ path, message: `'${name}' is the name of two adapters; each needs its own` });
  taken.set(folded, path);
}

function checkLength(
  { epochs, steps }: { epochs?: number | undefined; steps?: number | undefined },
  at: Path,
  faults: Fault[],
): void {
  if (epochs !== undefined && steps !== undefined)
    faults.push({ path: [...at, "steps"], message: "and epochs exclude each other; leave one out" });
}

/** What two keys must agree on. */
function checkTogether(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  sweep: AdapterTable["sweep"],
  at: Path,
  faults: Fault[],
): void {
  const all = { ...defaults, ...adapter };
  if (all.data === undefined) faults.push({ path: [...at, "data"], message: "is missing: it names the JSONL files" });
  else if (typeof all.data === "object" && "train" in all.data && all.data.eval !== undefined && all.data.split)
    faults.push({ path: [...at, "data"], message: "has eval and split; leave one out" });
  if (all.format === "template" && !all.template)
    faults.push({ path: [...at, "template"], message: 'is missing: format "template" needs { prompt, completion }' });
  if (all.template && all.format !== "template")
    faults.push({ path: [...at, "template"], message: 'is given, but format is not "template"' });
  const asked = { eval_every: adapter.eval_every, patience: all.patience, halving: all.halving }; // in [defaults], evaluations are for those that have rows
  for (const key of ["eval_every", "patience", "halving"] as const)
    if (asked[key] !== undefined && !heldOut(all.data))
      faults.push({ path: [...at, key], message: "needs held-out rows: give data.eval or data.split" });
  if (all.patience !== undefined && all.eval_every === undefined)
    faults.push({ path: [...at, "patience"], message: "counts evaluations: give eval_every, the steps between them" });
  if (all.halving !== undefined && adapter.halving?.group === undefined && sweep === undefined)
    faults.push({ path: [...at, "halving"], message: "compares the adapters of a sweep: give [adapter.sweep]" });
  checkOptimizer(adapter, defaults, at, faults);
  checkObjective(all, at, faults);
  if (adapter.init !== undefined && !isSvdInit(adapter.init) && all.from !== undefined)
    faults.push({ path: [...at, "init"], message: "is for a fresh adapter, and `from` continues one; leave one out" });
  checkMethod(adapter, defaults, at, faults);
  checkInit(adapter, defaults, ranksOf(adapter, defaults, sweep, at), at, faults);
  if (Array.isArray(all.targets) && new Set(all.targets).size < all.targets.length)
    faults.push({ path: [...at, "targets"], message: "names a linear layer twice" });
}

/** Keys of other rows than the objective's. */
function checkObjective(all: Omit<DefaultsTable & AdapterTable, "name">, at: Path, faults: Fault[]): void {
  const { objective = "sft" } = all;
  const name = typeof objective === "string" ? objective : objective.name;
  if (!OBJECTIVE_NAMES.includes(name)) return; // its schema has told it
  if (rowKindOf({ name }) !== "single")
    for (const [key, allowed] of [
      ["format", "auto"],
      ["train_on", "completion"],
    ] as const)
      if (all[key] !== undefined && all[key] !== allowed)
        faults.push({
          path: [...at, key],
          message: `is for supervised fine-tuning; leave it out with the objective ${name}`,
        });
  if (isContrastive({ name }) && all.batch_size === 1)
    faults.push({
      path: [...at, "batch_size"],
      message: `is 1: ${name} contrasts the rows of a micro-batch, so it needs 2 or more`,
    });
}

/** Keys of another kind; in [defaults] they are for the adapters that have it. */
function checkMethod(adapter: AdapterTable, defaults: DefaultsTable, at: Path, faults: Fault[]): void {
  const { method = "lora" } = { ...defaults, ...adapter };
  for (const key of OWN_KEYS) {
    if (adapter[key] === undefined || DEFINITIONS[method].keys.includes(key)) continue;
    const of = PEFT_METHODS.filter((other) => DEFINITIONS[other].keys.includes(key)).map((other) => `"${other}"`);
    faults.push({ path: [...at, key], message: `is for the method ${of.join(" or ")}; leave it out with "${method}"` });
  }
}

/** All the ranks that an adapter is given, each with its place: in the adapter, in its sweep, or in [defaults]. */
function ranksOf(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  sweep: AdapterTable["sweep"],
  at: Path,
): { readonly path: Path; readonly rank: number }[] {
  const { method = "lora", rank_pattern = {}, ...all } = { ...defaults, ...adapter };
  const { rank = DEFINITIONS[method].rank } = all;
  const placeOf = (key: "rank" | "rank_pattern"): Path => {
    if (sweep && Object.hasOwn(sweep, key)) return [...at, "sweep", key];
    return adapter[key] === undefined && defaults[key] !== undefined ? ["defaults", key] : [...at, key];
  };
  const patterns = DEFINITIONS[method].keys.includes("rank_pattern") ? Object.entries(rank_pattern) : [];
  return [
    { path: placeOf("rank"), rank },
    ...patterns.map(([pattern, rank]) => ({ path: [...placeOf("rank_pattern"), pattern], rank })),
  ];
}

/** What a beginning needs: a part of the weight, that nothing changes what is frozen beside it, or what it is taken off. */
function checkInit(
  adapter: AdapterTable,
  defaults: DefaultsTable,
  ranks: ReturnType<typeof ranksOf>,
  at: Path,
  faults: Fault[],
): void {
  const all = { ...defaults, ...adapter };
  const { init = "default", method = "lora" } = all;
  const isOfDefaults = all.from !== undefined && adapter.init === undefined; // which are for those that begin anew
  if (isOfDefaults || !DEFINITIONS[method].keys.includes("init")) return;
  if (init === "orthogonal" && all.from === undefined)
    for (const { path, rank } of ranks)
      if (rank % 2 === 1)
        faults.push({ path, message: `is ${rank}, expected an even rank with the initialisation "orthogonal"` });
  if (!isSvdInit(init)) return;
  const wrong = (path: Path, why: string) => faults.push({ path, message: `${why} with the initialisation "${init}"` });
  if (!DEFINITIONS[method].beginsAsPart) wrong([...at, "method"], `is "${method}", and has to be "lora"`);
  if ((all.dropout ?? 0) > 0)
    wrong([...at, "dropout"], `is ${all.dropout}: the weight's part would be dropped, too; leave it out`);
  if ((all.weight_decay ?? 0) > 0)
    wrong([...at, "weight_decay"], `is ${all.weight_decay}: it would shrink the weight's part; leave it out`);
  for (const { path, rank } of ranks)
    if (2 * rank > MOST_RANK)
      wrong(path, `is ${rank}, and has to be ${MOST_RANK / 2} or less, for as much again is kept frozen,`);
}

const OPTIMIZER_KEYS = { betas: "adamw", eps: "adamw", momentum: "sgd", nesterov: "sgd" } as const;

/** Keys of another optimizer; in [defaults] they are for the adapters that have it. */
function checkOptimizer(adapter: AdapterTable, defaults: DefaultsTable, at: Path, faults: Fault[]): void {
  const { optimizer = "adamw", momentum = 0, nesterov = false } = { ...defaults, ...adapter };
  for (const [key, of] of Object.entries(OPTIMIZER_KEYS) as [keyof typeof OPTIMIZER_KEYS, string][])
    if (adapter[key] !== undefined && of !== optimizer)
      faults.push({ path: [...at, key], message: `is for ${of}; leave it out with the optimizer ${optimizer}` });
  if (optimizer === "sgd" && nesterov && momentum === 0)
    faults.push({ path: [...at, "nesterov"], message: "looks ahead by the momentum: give momentum, 0.9 for instance" });
}

function seedOf({ seed }: Overrides, fallback = 42): number {
  if (seed === undefined) return fallback;
  const value = typeof seed === "number" ? seed : /^\d+$/.test(seed) ? Number(seed) : Number.NaN;
  if (!Number.isInteger(value) || value < 0 || value > 2 ** 32 - 1)
    throw new RequestError("flag.seed", `--seed ${seed}: wants a whole number from 0 to ${2 ** 32 - 1}`);
  return value;
}

function deviceOf({ device }: Overrides): Recipe["run"]["device"] | undefined {
  if (device === undefined || device === "auto" || device === "cpu" || device === "cuda") return device;
  throw new RequestError("flag.device", `--device ${device}: wants auto, cpu or cuda`);
}

/** --stages 4, or 10,12,10 for the layers of each. */
function stagesOf({ stages }: Overrides): Recipe["run"]["stages"] | undefined {
  if (stages === undefined || stages === "auto") return stages;
  const numbers = `${stages}`.split(",").map(Number);
  if (!numbers.every((n) => Number.isInteger(n) && n >= 1 && n <= 256))
    throw new RequestError(
      "flag.stages",
      `--stages ${stages}: wants auto, a number of stages up to 256, or the layers of each: 10,12,10`,
    );
  return numbers.length === 1 ? numbers[0]! : numbers;
}

const tableOf = (of: object) => Object.fromEntries(Object.entries(of).filter(([, value]) => value !== null));

/** The resolved recipe as TOML: loads again, from anywhere, to the same recipe. */
export const formatRecipe = ({ model, run, adapters }: Recipe): string =>
  `${stringify({
    model: { path: model.path, precision: model.precision },
    run: {
      output: run.output,
      seed: run.seed,
      device: run.device,
      ...(run.tokensPerMicrobatch === null ? {} : { tokens_per_microbatch: run.tokensPerMicrobatch }),
      recomputation: run.recomputation,
      stages: typeof run.stages === "object" ? [...run.stages] : run.stages,
      restarts: run.restarts,
      slots: run.slots ?? "auto",
      checkpoint: run.checkpoint === null ? false : tableOf(run.checkpoint),
    },
    adapter: adapters.map(adapterTable),
  })}\n`;

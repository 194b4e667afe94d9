// A recipe from its file: parsed strictly, all faults reported together, each with its line and column.

import { readFileSync, statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { parse, stringify, TomlError } from "smol-toml";
import * as v from "valibot";
import { camelKeys, snake } from "../base/case.ts";
import { RequestError, textOf } from "../base/errors.ts";
import { hubText, isHub, ownPlace, REPO } from "../base/source-name.ts";
import { count, counted } from "../base/units.ts";
import { checkLength, checkTogether } from "./agree.ts";
import { type Fault, faultsOf, unknownKey } from "./faults.ts";
import { type Path, Places } from "./places.ts";
import { type AdapterRecipe, CHECKPOINTS, MLFLOW, type Overrides, type Recipe, TENSORBOARD, WANDB } from "./recipe.ts";
import { adapterTable, resolveAdapter } from "./resolve.ts";
import { ADAPTER_KEYS, type AdapterKey, type AdapterTable, adapterEntries, type DefaultsTable, RecipeTable } from "./schema.ts";
import { choicesOf, countChoices, MOST_ADAPTERS } from "./sweep.ts";

const MOST_BYTES = 16 << 20;

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
    if (stat.size > MOST_BYTES)
      throw unreadable(`has ${counted(stat.size, "byte")}, a recipe has at most ${count(MOST_BYTES)}`);
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path));
  } catch (error) {
    if (error instanceof RequestError) throw error;
    const { code } = error as { code?: string };
    throw unreadable(code === "ENOENT" ? "no such file" : error instanceof TypeError ? "is not UTF-8 text" : textOf(error));
  }
}

/** The recipe that `text` is; `path` is absolute and names it in messages. */
export function parseRecipe(text: string, path: string, overrides: Overrides = {}): Recipe {
  const table = withModelTable(parseToml(text, path));
  const places = new Places(text);
  const faults: Fault[] = [];
  const parsed = v.safeParse(RecipeTable, table);
  if (!parsed.success) for (const issue of parsed.issues) faults.push(...faultsOf(issue, RecipeTable));
  if (text.includes(VARIABLES)) faults.push(...variableFaults(parse(text, { integersAsBigInt: true })));
  const modelPath = parsed.success ? modelPathOf(parsed.output.model, path, faults) : "";
  const adapters = parsed.success ? resolveAll(parsed.output, path, seedOf(overrides, parsed.output.run.seed), faults) : [];
  const isHeldOut = adapters.some(({ eval: heldOut, evalSplit }) => heldOut.length > 0 || evalSplit > 0);
  if (parsed.success && parsed.output.run.notify?.below !== undefined && faults.length === 0 && !isHeldOut)
    faults.push({ path: ["run", "notify"], message: "has below, a held-out loss, and no adapter has held-out rows" });
  if (parsed.success && parsed.output.run.notify?.on?.length === 0 && parsed.output.run.notify.below === undefined)
    faults.push({ path: ["run", "notify", "on"], message: "is empty, and there is no below: nothing would be notified" });
  if (faults.length > 0) throw invalid(path, places, faults);
  const { model, run } = (parsed as { readonly output: RecipeTable }).output;
  const recipe: Recipe = {
    path,
    model: { path: modelPath, precision: model.precision },
    run: {
      ...camelKeys(run),
      output: outputOf(overrides) ?? resolve(dirname(path), run.output),
      seed: seedOf(overrides, run.seed),
      device: deviceOf(overrides) ?? run.device,
      tokensPerMicrobatch: run.tokens_per_microbatch ?? null,
      stages: stagesOf(overrides) ?? run.stages,
      slots: run.slots === "auto" ? null : run.slots,
      residentAdapters: run.resident_adapters ?? null,
      checkpoint: checkpointOf(run.checkpoint),
      notify: run.notify ?? null,
    },
    adapters,
  };
  if (recipe.run.output === recipe.model.path)
    throw invalid(path, places, [{ path: ["run", "output"], message: "is the base model's own folder; choose another" }]);
  return recipe;
}

/** `model = "org/name"` is short for the name on the hub; another text is a path. */
function withModelTable(table: unknown): unknown {
  const { model } = table as { readonly model?: unknown };
  if (typeof model !== "string") return table;
  return { ...(table as object), model: REPO.test(model) ? { name: model } : { path: model } };
}

function modelPathOf({ path: given, name, revision = "main" }: RecipeTable["model"], recipe: string, faults: Fault[]): string {
  const at = (key: string) => ["model", key];
  if (given !== undefined && name !== undefined)
    faults.push({ path: at("name"), message: "is given next to path; leave one out" });
  if (given === undefined && name === undefined) faults.push({ path: at("path"), message: "is missing" });
  if (name === undefined && revision !== "main")
    faults.push({ path: at("revision"), message: "is that of a name, which is not given" });
  if (name !== undefined) return hubText({ kind: "models", repo: name, revision, path: "", config: null, split: null });
  return given === undefined || isHub(given) ? (given ?? "") : resolve(dirname(recipe), given);
}

/** How often adapters are saved unless the recipe says. */
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

function resolveAll(table: RecipeTable, path: string, seed: number, faults: Fault[]): AdapterRecipe[] {
  const defaults: DefaultsTable = table.defaults ?? {};
  checkLength(defaults, ["defaults"], faults);
  const total = table.adapter.reduce((sum, adapter) => sum + countChoices(adapter), 0);
  if (total > MOST_ADAPTERS) {
    faults.push({
      path: ["adapter"],
      message: `and its sweeps make ${counted(total, "adapter")}; a recipe has at most ${count(MOST_ADAPTERS)}`,
    });
    return [];
  }
  const isPatient = ({ patience, sweep }: AdapterTable) => patience !== undefined || sweep?.["patience"] !== undefined;
  if (defaults.min_delta && defaults.patience === undefined && !table.adapter.some(isPatient))
    faults.push({ path: ["defaults", "min_delta"], message: "is for patience, which no adapter has; leave it out" });
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
        const schema: v.GenericSchema = adapterEntries[key as AdapterKey];
        const result = v.safeParse(schema, value);
        if (!result.success) faults.push(...result.issues.flatMap((issue) => faultsOf(issue, schema, [...path, i])));
      }
  }
}

function checkName(name: string, path: Path, taken: Map<string, Path>, faults: Fault[]): void {
  const folded = name.toLowerCase(); // some file systems do not tell them apart
  if (name.length > 64)
    faults.push({ path, message: `makes the name '${name}' of ${counted(name.length, "character")}; at most 64` });
  const taking = {
    [CHECKPOINTS]: "its checkpoints",
    [TENSORBOARD]: "TensorBoard's files",
    [WANDB]: "W&B's files",
    [MLFLOW]: "what MLflow is sent",
  }[folded];
  if (taking) faults.push({ path, message: `'${name}' is where a run keeps ${taking}; give it another` });
  if (taken.has(folded)) faults.push({ path, message: `'${name}' is the name of two adapters; each needs its own` });
  taken.set(folded, path);
}

function seedOf({ seed }: Overrides, fallback: number): number {
  if (seed === undefined) return fallback;
  const value = typeof seed === "number" ? seed : /^\d+$/.test(seed) ? Number(seed) : Number.NaN;
  if (!Number.isInteger(value) || value < 0 || value > 2 ** 32 - 1)
    throw new RequestError("flag.seed", `--seed ${seed}: expected a whole number from 0 to ${2 ** 32 - 1}`);
  return value;
}

function outputOf({ output }: Overrides): string | undefined {
  if (output === undefined) return undefined;
  return resolve(ownPlace("flag.output", "output", output));
}

function deviceOf({ device }: Overrides): Recipe["run"]["device"] | undefined {
  if (device === undefined || device === "auto" || device === "cpu" || device === "cuda") return device;
  throw new RequestError("flag.device", `--device ${device}: expected auto, cpu or cuda`);
}

/** --stages 4, or 10,12.5,9.5 for the layers of each. */
function stagesOf({ stages }: Overrides): Recipe["run"]["stages"] | undefined {
  if (stages === undefined || stages === "auto") return stages;
  const numbers = `${stages}`.split(",").map(Number);
  const step = numbers.length === 1 ? 1 : 0.5;
  if (!numbers.every((n) => Number.isInteger(n / step) && n >= step && n <= 256))
    throw new RequestError(
      "flag.stages",
      `--stages ${stages}: expected auto, a number of stages up to 256, or the layers of each, whole or halves: 10,12.5,9.5`,
    );
  return numbers.length === 1 ? numbers[0]! : numbers;
}

const VARIABLES = "chat_template_kwargs";

/**
 * Variables of a chat template that it would print otherwise than the same ones in Python: dates, and floats without a fraction
 * (1.0), which are whole numbers here. `value` is of a parser that tells the two apart.
 */
function variableFaults(value: unknown, path: Path = [], isVariable = false): Fault[] {
  if (typeof value !== "object" || value === null || value instanceof Date) {
    const wrong = (what: string) => [{ path, message: `is ${what}: a chat template would print it otherwise; write a string` }];
    if (!isVariable) return [];
    if (value instanceof Date) return wrong("a date or time");
    return Number.isInteger(value) ? wrong(`the float ${numberText(value as number)}, without a fraction`) : [];
  }
  const entries: (readonly [string | number, unknown])[] = Array.isArray(value) ? [...value.entries()] : Object.entries(value);
  const areVariables = (key: string | number, of: unknown) => key === VARIABLES && !(of instanceof Date);
  return entries.flatMap(([key, of]) => variableFaults(of, [...path, key], isVariable || areVariables(key, of)));
}

const numberText = (value: number): string => (Math.abs(value) < 1e16 ? `${value}.0` : `${value}`);

const tableOf = (of: object) => Object.fromEntries(Object.entries(of).filter(([, value]) => value !== null));

/** The resolved recipe as TOML: loads again, from anywhere, to the same recipe. */
export const formatRecipe = ({ model, run, adapters }: Recipe): string =>
  `${stringify({
    model,
    run: tableOf({
      ...Object.fromEntries(Object.entries(run).map(([key, value]) => [snake(key), value])),
      slots: run.slots ?? "auto",
      checkpoint: run.checkpoint === null ? false : tableOf(run.checkpoint),
    }),
    adapter: adapters.map(adapterTable),
  })}\n`;

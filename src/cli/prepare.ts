// From a recipe's path to a plan: what `run` and `plan` have in common. All that a request can get wrong is found here, before
// any weight is read.

import { relative } from "node:path";
import { stringify } from "smol-toml";
import { RequestError } from "../base/errors.ts";
import { isPrincipal } from "../base/init.ts";
import { referenceOf } from "../base/objective.ts";
import { samePlaces } from "../base/placement.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type Dataset, loadDataset, type ReadFiles, tokenizerOf } from "../data/dataset.ts";
import { unstopped } from "../data/ends.ts";
import { type NoticeKind, noticeText } from "../data/notices.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { linearsAreBf16 } from "../files/basemodel.ts";
import { readModelSpec } from "../files/config.ts";
import { stopTokens } from "../files/generation.ts";
import { type PartOfWeight, readPeftAdapter, type SavedAdapter } from "../files/peft.ts";
import { placeFields } from "../files/peftplaces.ts";
import { type BankAdapter, stagePlaces } from "../plan/adapters.ts";
import type { PlacedAdapter } from "../plan/places.ts";
import { type DataSummary, makePlan, type Plan, type PlanOptions, type StageDevice, stageCount } from "../plan/plan.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { AdapterRecipe, Overrides, Recipe } from "../recipe/recipe.ts";
import { countTargets } from "../run/feed.ts";
import { type Source, sourcesOf } from "../run/sources.ts";
import { inputLength, longestSequence, type Row, sequencesOf } from "../schedule/pack.ts";
import { describeDevice } from "../stage/probe.ts";
import { frozenOf } from "./adapters.ts";

/** What was asked, with the data read: all that a plan needs beside the devices. */
export type Request = {
  readonly recipe: Recipe;
  readonly spec: ModelSpec;
  readonly data: readonly RequestData[];
  /** All linear weights are bf16 in the model's files. */
  readonly exact: boolean;
  /** What the run's user should know of it. */
  readonly notices: readonly string[];
};
/** An adapter's rows, the adapter from a file that they are measured against, and all adapters from files that it is made from. */
export type RequestData = Dataset & { readonly reference: BankAdapter | null; readonly sources: readonly Source[] };
export type Prepared = Request & { readonly plan: Plan };

const summary = (rows: readonly Row[]) =>
  rows.map((row) => {
    const targets = sum(sequencesOf(row).map(countTargets));
    return { length: inputLength(row), longest: longestSequence(row), targets };
  });

/** Reads recipe, model configuration, tokenizer and data, and plans the run on this machine. Throws RequestErrors. */
export function prepare(recipePath: string, overrides: Overrides): Prepared {
  const { recipe, spec } = readRecipe(recipePath, overrides);
  const devices = localDevices(recipe, spec);
  const request = readRequest(recipe, spec);
  return { ...request, plan: planOn(request, devices) };
}

export function readRecipe(recipePath: string, overrides: Overrides): Pick<Request, "recipe" | "spec"> {
  const recipe = loadRecipe(recipePath, overrides);
  const spec = readModelSpec(recipe.model.path);
  for (const adapter of recipe.adapters) stagePlaces(adapter, spec); // before the data, which may be long
  return { recipe, spec };
}

/** The devices that the stages have where all run on this machine: as many as the recipe says, or `count`; GPUs in turn. */
export function localDevices({ model, run }: Recipe, spec: ModelSpec, count?: number): StageDevice[] {
  const describe = (ordinal: number) => describeDevice(run.device, model.precision, ordinal);
  const first = describe(0);
  const stages = count ?? stageCount(run.stages, spec, first.count);
  const found = range(Math.min(stages, first.count)).map((ordinal) => (ordinal === 0 ? first : describe(ordinal)));
  return range(stages).map((stage) => ({ ...found[stage % found.length]!, host: "" }));
}

export const summariesOf = (data: readonly RequestData[]): DataSummary[] =>
  data.map(({ train, eval: held, reference }) => ({ train: summary(train), eval: summary(held), reference }));

export const planOn = ({ recipe, spec, data, exact }: Request, devices: readonly StageDevice[], options?: PlanOptions): Plan =>
  makePlan(recipe, spec, summariesOf(data), devices, { exact, ...options });

/** Reads what the recipe names, and checks it. */
export function readRequest(recipe: Recipe, spec: ModelSpec): Request {
  const exact = linearsAreBf16(recipe.model.path, spec); // also: the files are whole and fit the configuration
  for (const adapter of recipe.adapters) checkInitialAdapter(adapter, spec);
  const tokenizer = loadTokenizer(recipe.model.path);
  const read: ReadFiles = new Map(); // a sweep's adapters share their rows
  const references = recipe.adapters.map((adapter) => referenceAdapter(adapter, spec)); // before the data, which may be long
  const data = recipe.adapters.map((adapter, i) => {
    return { ...loadDataset(adapter, tokenizer, spec.vocab, read), reference: references[i]!, sources: sourcesOf(adapter) };
  });
  return { recipe, spec, data, exact, notices: [...endNotices(recipe, tokenizer), ...dataNotices(recipe, data)] };
}

/** Rows that are cut or dropped are counted in the plan's table. */
const IN_TABLE: readonly NoticeKind[] = ["cut"];

/** What was lost or left out of the rows; adapters of a sweep read the same ones. */
function dataNotices({ adapters }: Recipe, data: readonly Dataset[]): string[] {
  const named = data.flatMap(({ notices }, i) =>
    notices
      .filter(({ kind }) => !IN_TABLE.includes(kind))
      .map((notice) => ({ text: noticeText(notice), name: adapters[i]!.name })),
  );
  return [...Map.groupBy(named, ({ text }) => text)].map(([text, of]) => `${namesOf(of.map(({ name }) => name))}: ${text}`);
}

/** "a, b and 6 more". */
const namesOf = (names: readonly string[]): string =>
  names.length <= 3 ? names.join(", ") : `${names.slice(0, 2).join(", ")} and ${names.length - 2} more`;

/** Programs that serve an adapter stop where the base model does. */
function endNotices({ model, adapters }: Recipe, tokenizer: Tokenizer): string[] {
  const chats = adapters.filter(({ chatTemplate, format }) => chatTemplate !== false && format !== "text");
  const templates = new Map(chats.map((adapter) => [adapter.chatTemplate, adapter]));
  const stops = stopTokens(model.path);
  const ends = [...new Set([...templates.values()].flatMap((of) => unstopped(tokenizerOf(of, tokenizer), stops)))];
  if (ends.length === 0) return [];
  return [
    `the chat template ends answers with ${ends.join(" or ")}, at which ${shortPath(model.path)} does not stop: give the server of its adapters ` +
      "this token to stop at (mlora generate does it, mlora export writes it)",
  ];
}

function referenceAdapter(adapter: AdapterRecipe, spec: ModelSpec): BankAdapter | null {
  const reference = referenceOf(adapter.objective);
  if (reference === null || typeof reference === "string") return null;
  return frozenOf(savedAdapter(reference.folder, adapter, "objective.reference", spec));
}

/** A recipe is checked by ranks and scales alone: its adapters' factors are computed where they begin. */
const noPart: PartOfWeight = () => {
  throw new Error("a part of a weight is asked for while a recipe is checked");
};

/** Reads an adapter that a recipe names; what is wrong with it is told with who names it. */
function savedAdapter(folder: string, { name }: AdapterRecipe, key: string, spec: ModelSpec): SavedAdapter {
  try {
    return readPeftAdapter(folder, spec, noPart);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    const { code, message, hint = "it wants a folder as PEFT writes it, of an adapter of this base model" } = error;
    throw new RequestError(code, message, `adapter '${name}', ${key}: ${hint}`, { cause: error });
  }
}

/** An adapter that continues another must be of its making: other ranks or scales would be another function from the start. */
function checkInitialAdapter(adapter: AdapterRecipe, spec: ModelSpec): void {
  if (adapter.initialAdapter === null) return;
  const saved = savedAdapter(adapter.initialAdapter, adapter, "from", spec);
  const asked = stagePlaces(adapter, spec);
  checkBeginning(adapter, asked, saved, spec);
  const pairs: readonly (readonly [string, unknown, unknown])[] = [
    ["method", adapter.method, saved.method],
    ["rank", asked.rank, saved.rank],
    ...(saved.vera
      ? ([["projection_seed", adapter.projectionSeed, saved.vera.projectionSeed]] as const)
      : ([
          ["alpha", adapter.alpha, saved.alpha],
          ["rslora", adapter.rslora, saved.rslora],
        ] as const)),
    ["targets", asked.targets.join(", "), saved.targets.join(", ")],
  ];
  if (saved.vera && !saved.vera.isDrawnHere)
    throw new RequestError(
      "plan.from",
      `adapter '${adapter.name}' cannot continue ${adapter.initialAdapter}: its projections were not drawn by mlora`,
      "train a VeRA from its beginning, or merge this one into the base model first (mlora export)",
    );
  if (isPrincipal(adapter.init)) return;
  const isUniform = !asked.places && !saved.places;
  const faults = pairs.filter(([key, wanted, found]) => wanted !== found && (isUniform || !BY_PLACE.includes(key)));
  if (!isUniform && !samePlaces(asked, saved, spec.layers)) throw otherPlaces(adapter, saved);
  if (faults.length === 0) return;
  const told = faults.map(([key, wanted, found]) => `${key} ${found} there, ${wanted} in the recipe`).join("; ");
  throw new RequestError(
    "plan.from",
    `adapter '${adapter.name}' cannot continue ${adapter.initialAdapter}: ${told}`,
    "give the adapter the values of the one that it continues",
  );
}

/**
 * What began as a part of the weight is continued with that part frozen beside it (`init` as it was), or as the LoRA of twice the rank that it is with the base; so is
 * what was converted to that.
 */
function checkBeginning(adapter: AdapterRecipe, asked: PlacedAdapter, saved: SavedAdapter, spec: ModelSpec): void {
  const { name, init, initialAdapter } = adapter;
  const isSame = samePlaces(asked, saved, spec.layers);
  const { begun } = saved;
  if (isPrincipal(init) ? isSame && (!begun || begun.init === init) : !begun || isSame) return;
  const told = begun
    ? `it began with ${begun.init}, rank ${begun.rank} and alpha ${begun.alpha}`
    : `it has rank ${saved.rank}, and ${init} wants one of twice the recipe's rank ${adapter.rank}, at the same scale`;
  const values = begun && !saved.places ? `rank = ${begun.rank} and alpha = ${begun.alpha}` : "its ranks and alphas";
  throw new RequestError(
    "plan.from",
    `adapter '${name}' cannot continue ${initialAdapter}: ${told}`,
    begun ? `give the adapter init = "${begun.init}", ${values}` : `leave init out to train all of it`,
  );
}

/** What patterns and layers may change, and what is compared place by place then. */
const BY_PLACE = ["rank", "alpha", "targets"];

function otherPlaces({ name, initialAdapter }: AdapterRecipe, saved: SavedAdapter): RequestError {
  const { rank, alpha, targets, layers, rankPattern, alphaPattern } = placeFields(saved);
  const patterns = { rank_pattern: rankPattern, alpha_pattern: alphaPattern };
  const keys = {
    ...{ rank, ...(saved.method === "vera" ? {} : { alpha }), targets: [...targets] },
    ...(layers ? { layers: [...layers] } : {}),
    ...Object.fromEntries(Object.entries(patterns).filter(([, table]) => Object.keys(table).length > 0)),
  };
  return new RequestError(
    "plan.from",
    `adapter '${name}' cannot continue ${initialAdapter}: its ranks or scales differ from the recipe's in some layer`,
    `give the adapter what it has there:\n${stringify(keys).trim()}`,
  );
}

/** A path as people want to read it: relative to here when that is shorter. */
export function shortPath(path: string): string {
  const here = relative(process.cwd(), path) || ".";
  return here.length < path.length ? here : path;
}

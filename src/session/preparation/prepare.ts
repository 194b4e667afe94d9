// From a recipe to a plan. All faults of a request are found here, before a weight is read.

import { camel } from "../../base/case.ts";
import { now, sleep } from "../../base/clock.ts";
import { RequestError } from "../../base/errors.ts";
import type { ExactWeights } from "../../base/precision.ts";
import { range } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import type { PatternTable } from "../../base/targeting.ts";
import { shortPath } from "../../base/units.ts";
import type { FilesOf } from "../../data/data-file.ts";
import type { Dataset } from "../../data/dataset.ts";
import { unstopped } from "../../data/ends.ts";
import type { TokenCache } from "../../data/file-rows.ts";
import { type NoticeKind, noticeText } from "../../data/notices.ts";
import { type ReadingOptions, readData } from "../../data/reading.ts";
import { countRows as rowCounts } from "../../data/row-counts.ts";
import { tokenizerOf } from "../../data/row-reader.ts";
import { loadTokenizer, type Tokenizer } from "../../data/tokenizer.ts";
import { describeDevice } from "../../engine/probe.ts";
import { unappliedKeys } from "../../families/unapplied.ts";
import { openBaseModel } from "../../files/basemodel.ts";
import { readModelConfig, readModelSpec } from "../../files/config.ts";
import { stopTokens } from "../../files/generation.ts";
import { readModelFacts } from "../../files/modelfacts.ts";
import { type PartOfWeight, readPeftAdapter, type SavedAdapter } from "../../files/peft.ts";
import { placeFields, placesOfFile } from "../../files/peftplaces.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import type { PlacedAdapter, PoolAdapter } from "../../methods/adapter.ts";
import { isSvdInit } from "../../methods/init.ts";
import { samePlaces } from "../../methods/placement.ts";
import { DEFINITIONS, fileMethodOf, isScaled } from "../../methods/registry.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import { stagePlaces } from "../../plan/adapters.ts";
import { expertNotices } from "../../plan/experts.ts";
import {
  type DataSummary,
  makePlan,
  type Plan,
  type PlanOptions,
  type RowCounts,
  type StageDevice,
  stageCount,
} from "../../plan/plan.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import type { Row } from "../../schedule/pack.ts";
import { openFiles, openModel } from "../../sources/open.ts";
import { tokenCache } from "../../sources/tokens.ts";
import { checkGraded } from "../rollouts/rewards.ts";
import { referenceFolder, type Source, sourcesOf } from "../state/sources.ts";
import { frozenOf } from "./adapters.ts";
import { mixNotices } from "./mix-notices.ts";
import { tokenNotices, withTokenIds } from "./trained-tokens.ts";

/** A recipe with its data: all that a plan needs but the devices. */
export type Request = {
  readonly recipe: Recipe;
  readonly spec: ModelSpec;
  readonly data: readonly RequestData[];
  /** What linear weights are held in exactly, by the model's files. */
  readonly exact: ExactWeights | null;
  /** Notices about the model and the data, for people. */
  readonly notices: readonly string[];
};
/** An adapter's rows, the reference adapter of its objective, and the saved adapters that it is made from. */
export type RequestData = Dataset & { readonly reference: PoolAdapter | null; readonly sources: readonly Source[] };

/** Counts of all rows, in three arrays: made once, however often the run is planned. */
const counted = new WeakMap<readonly Row[], DataSummary["train"]>();

/** Has plans take these counts for those of the rows. */
export const setCounts = (rows: readonly Row[], counts: RowCounts): void => void counted.set(rows, counts);

/** Milliseconds between two moments at which timers, requests and signals run. */
const LOOK_MS = 50;

/** `follow`: of prompts, the tokens that may follow each; else 0. */
export async function countRows(rows: readonly Row[], follow: number): Promise<void> {
  if (counted.has(rows)) return;
  const counts = rowCounts(rows, follow);
  for (let looked = now(); ; ) {
    const { done, value } = counts.next();
    if (done) return void counted.set(rows, value);
    if (now() - looked < LOOK_MS) continue;
    await sleep(0);
    looked = now();
  }
}

/** The recipe with its base model on this machine: that of a hub is fetched first. */
export async function withLocalModel(
  recipe: Recipe,
  { signal, progress }: Reading,
  notice: (text: string) => void,
): Promise<Recipe> {
  const fetching = (name: string, bytes: number) => progress?.({ rows: 0, bytes, totalBytes: 0, fetching: name });
  const path = await openModel(recipe.model.path, { signal, progress: fetching, notice });
  return path === recipe.model.path ? recipe : { ...recipe, model: { ...recipe.model, path } };
}

/** The base model's spec, by its config.json. Throws RequestErrors, also where the model lacks places of an adapter. */
export function specFor({ model, adapters }: Recipe): ModelSpec {
  const spec = readModelSpec(model.path);
  for (const adapter of adapters) stagePlaces(adapter, spec); // before the data, which may take long to read
  return spec;
}

/** The devices of stages on this machine, as many as the recipe says, or `count`; GPUs in turn. */
export function localDevices({ model, run }: Recipe, spec: ModelSpec, count?: number): StageDevice[] {
  const describe = (ordinal: number) => describeDevice(run.device, model.precision, ordinal);
  const first = describe(0);
  const stages = count ?? stageCount(run.stages, spec, first.count);
  const found = range(Math.min(stages, first.count)).map((ordinal) => (ordinal === 0 ? first : describe(ordinal)));
  return range(stages).map((stage) => ({ ...found[stage % found.length]!, host: "" }));
}

export const summariesOf = (data: readonly RequestData[]): DataSummary[] =>
  data.map(({ train, eval: heldOut, sizes, reference }) => {
    return { train: counted.get(train)!, eval: counted.get(heldOut)!, sizes, reference };
  });

export const planOn = ({ recipe, spec, data, exact }: Request, devices: readonly StageDevice[], options?: PlanOptions): Plan =>
  makePlan(recipe, spec, summariesOf(data), devices, { exact, ...options });

export type Reading = Omit<ReadingOptions, "model" | "vocab" | "files">;

/** All of a request but its rows. */
export type Unread = Pick<Request, "recipe" | "spec" | "exact"> & {
  readonly tokenizer: Tokenizer;
  /** The tokenizer's folder. */
  readonly folder: string;
  readonly files: FilesOf;
  readonly cache: TokenCache | null;
  /** Of each adapter, what it is made from besides its rows. */
  readonly made: readonly Pick<RequestData, "reference" | "sources">[];
  readonly notices: readonly string[];
};

/**
 * Reads and checks the files that the recipe names, data in a thread of its own; `config` is the model's spec, of config.json
 * or of its files.
 */
export async function readRequest(written: Recipe, config: ModelSpec, reading: Reading = {}): Promise<Request> {
  return await readRows(await openRequest(written, config, reading), reading);
}

/** The same but for the rows, whose files are opened. */
export async function openRequest(written: Recipe, config: ModelSpec, reading: Reading = {}): Promise<Unread> {
  const { spec, exact, notices } = readModelFacts(written.model.path, config);
  const folder = tokenizerFolder(written.model.path);
  const tokenizer = loadTokenizer(folder);
  const recipe = withTokenIds(written, tokenizer);
  for (const adapter of recipe.adapters) stagePlaces(adapter, spec); // again: with tokens, and by the files of the model
  for (const adapter of recipe.adapters) checkInitialAdapter(adapter, spec, recipe.model.path);
  const references = recipe.adapters.map((adapter) => referenceAdapter(adapter, spec, recipe.model.path)); // before the data
  const opened: string[] = [];
  const cache = tokenCache();
  const files = await openFiles(dataNames(recipe.adapters), {
    isHashed: cache !== null,
    signal: reading.signal,
    notice: (text) => opened.push(text),
    progress: (fetching, bytes) => reading.progress?.({ rows: 0, bytes, totalBytes: 0, fetching }),
  });
  const told = [...opened, ...expertNotices(recipe.adapters, spec), ...tokenNotices(recipe, spec), ...rolloutNotices(recipe)];
  const made = recipe.adapters.map((adapter, i) => ({ reference: references[i]!, sources: sourcesOf(adapter) }));
  const all = [...notices, ...unappliedNotices(written.model.path, spec), ...told];
  return { recipe, spec, exact, tokenizer, folder, files, cache, made, notices: all };
}

/** What transformers would do in training by the model's config.json. */
function unappliedNotices(path: string, spec: ModelSpec): string[] {
  const { file, config } = readModelConfig(path);
  return unappliedKeys(config, spec).map((what) => `${file}: ${what}`);
}

/** The request with its rows. */
export async function readRows(unread: Unread, reading: Reading): Promise<Request> {
  const { recipe, spec, exact, tokenizer, folder, files, cache } = unread;
  const { adapters } = recipe;
  const read = await readData(adapters, { model: folder, vocab: spec.vocab, files, ...(cache ? { cache } : {}), ...reading });
  const data = read.map((of, i) => ({ ...of, ...unread.made[i]! }));
  for (const [i, { train, eval: heldOut }] of data.entries())
    for (const rows of [train, heldOut]) await countRows(rows, rolloutsOf(adapters[i]!.objective)?.maxNewTokens ?? 0);
  for (const [i, { train }] of data.entries()) checkGraded(adapters[i]!, train);
  const ofRows = [...mixNotices(adapters, data), ...endNotices(recipe, tokenizer), ...dataNotices(recipe, data)];
  const notices = [...unread.notices, ...ofRows];
  return { recipe, spec, data, exact, notices };
}

/** Names of all data of adapters, as their recipes have them. */
export const dataNames = (adapters: readonly AdapterRecipe[]): string[] =>
  adapters.flatMap(({ train, eval: heldOut }) => [...train, ...heldOut]);

/** How to read what a plan says of adapters that answer themselves. */
function rolloutNotices({ adapters }: Recipe): string[] {
  const names = adapters.filter(({ objective }) => rolloutsOf(objective)).map(({ name }) => name);
  if (names.length === 0) return [];
  return [
    `${namesOf(names)}: tokens, memory and time are those of answers of max_new_tokens; the time is without sampling them`,
  ];
}

/** Rows that are cut or dropped are counted in the plan's table. */
const IN_TABLE: readonly NoticeKind[] = ["cut"];

/** Notices of what was dropped from the rows; adapters of a sweep read the same ones. */
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

/** Notices of templates with ends of answers that servers of the adapter miss: they stop where the base does. */
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

function referenceAdapter(adapter: AdapterRecipe, spec: ModelSpec, model: string): PoolAdapter | null {
  const folder = referenceFolder(adapter.objective);
  return folder === null ? null : frozenOf(savedAdapter(folder, adapter, "objective.reference", spec, model));
}

/** A recipe is checked by ranks and scales alone: factors are computed when an adapter begins. */
const noPart: PartOfWeight = () => {
  throw new Error("a part of a weight is asked for while a recipe is checked");
};

/** Reads a saved adapter that a recipe names; errors name the adapter and the key of the recipe. */
function savedAdapter(folder: string, { name }: AdapterRecipe, key: string, spec: ModelSpec, model: string): SavedAdapter {
  try {
    return readPeftAdapter(folder, spec, noPart, { open: () => openBaseModel(model, spec) });
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    const { code, message, hint = "it needs a folder as PEFT writes it, of an adapter of this base model" } = error;
    throw new RequestError(code, message, `adapter '${name}', ${key}: ${hint}`, { cause: error });
  }
}

/** Checks that an adapter is made like the one it continues: other ranks or scales would be another function from the start. */
function checkInitialAdapter(adapter: AdapterRecipe, spec: ModelSpec, model: string): void {
  if (adapter.initialAdapter === null) return;
  const saved = savedAdapter(adapter.initialAdapter, adapter, "from", spec, model);
  const asked = stagePlaces(adapter, spec);
  checkBeginning(adapter, asked, saved, spec);
  const { title, continued, peft } = DEFINITIONS[saved.method];
  const valueIn = (key: string, of: object): unknown => of[camel(key) as keyof object];
  const pairs: readonly (readonly [string, unknown, unknown])[] = [
    ["method", fileMethodOf(adapter.method) === saved.method ? saved.method : adapter.method, saved.method],
    ["rank", asked.rank, saved.rank],
    ...continued.map((key) => [key, valueIn(key, adapter), valueIn(key, { ...saved, ...saved.own })] as const),
    ["targets", asked.targets.join(", "), saved.targets.join(", ")],
  ];
  if (saved.own?.isDrawnHere === false)
    throw new RequestError(
      "plan.from",
      `adapter '${adapter.name}' cannot continue ${adapter.initialAdapter}: its ${peft.shared!.name} were not drawn by mlora`,
      `train a ${title} from its beginning, or merge this one into the base model first (mlora export)`,
    );
  if (isSvdInit(adapter.init)) return;
  const isUniform = ![asked.places, saved.places, asked.tables, saved.tables].some((of) => of !== undefined);
  const faults = pairs.filter(([key, wanted, found]) => wanted !== found && (isUniform || !BY_PLACE.includes(key)));
  if (faults.length === 0) {
    if (!isUniform && !samePlaces(asked, saved, spec.layers)) throw otherPlaces(adapter, saved, spec);
    return;
  }
  const differences = faults.map(([key, wanted, found]) => `${key} ${found} there, ${wanted} in the recipe`).join("; ");
  throw new RequestError(
    "plan.from",
    `adapter '${adapter.name}' cannot continue ${adapter.initialAdapter}: ${differences}`,
    "give the adapter the values of the one that it continues",
  );
}

/**
 * An adapter that began as a part of the weight is continued with that part frozen (`init` as before), or as the LoRA of
 * twice the rank that it is with the base; so is an adapter that was converted to that.
 */
function checkBeginning(adapter: AdapterRecipe, asked: PlacedAdapter, saved: SavedAdapter, spec: ModelSpec): void {
  const { name, init, initialAdapter } = adapter;
  const isSame = samePlaces(asked, saved, spec.layers);
  const { begun } = saved;
  if (isSvdInit(init) ? isSame && (!begun || begun.init === init) : !begun || isSame) return;
  const isUniform = !asked.places && !saved.places;
  const differences = begun
    ? `it began with ${begun.init}, ${isUniform ? `rank ${begun.rank} and alpha ${begun.alpha}` : `and ${DIFFER}`}`
    : isUniform
      ? `it has rank ${saved.rank}, and ${init} needs one of twice the recipe's rank ${adapter.rank}, at the same scale`
      : `${init} needs twice the recipe's ranks and the same scales, and in some layer it has others`;
  // DoRA's magnitudes are of the whole weight: no part of it is frozen.
  const kept = begun && DEFINITIONS[saved.method].beginsAsPart ? begun.init : null;
  const uniform = kept
    ? `init = "${kept}", rank = ${begun!.rank} and alpha = ${begun!.alpha}`
    : `rank = ${saved.rank} and alpha = ${saved.alpha}`;
  throw new RequestError(
    "plan.from",
    `adapter '${name}' cannot continue ${initialAdapter}: ${differences}`,
    !begun ? "leave init out to train all of it" : saved.places ? placeHint(saved, spec, kept) : `give the adapter ${uniform}`,
  );
}

/** Keys that patterns and layers may change; then they are compared place by place. */
const BY_PLACE = ["rank", "alpha", "rslora", "targets"];

const DIFFER = "its ranks or scales differ from the recipe's in some layer";
const DIFFER_IN_TABLES = "its ranks, scales or tokens differ from the recipe's in some layer or table";

const otherPlaces = ({ name, initialAdapter }: AdapterRecipe, saved: SavedAdapter, spec: ModelSpec): RequestError =>
  new RequestError(
    "plan.from",
    `adapter '${name}' cannot continue ${initialAdapter}: ${saved.tables ? DIFFER_IN_TABLES : DIFFER}`,
    placeHint(saved, spec),
  );

/** The key of the tokens whose rows it trains; none where it trains none. */
function tokenLines(saved: SavedAdapter, spec: ModelSpec): string[] {
  const { tokens } = placesOfFile(saved, spec);
  const lists = Object.entries(tokens ?? {}).map(([table, ids]) => `${table} = ${JSON.stringify(ids)}`);
  return lists.length === 0 ? [] : [`trainable_tokens = { ${lists.join(", ")} }`];
}

/** The keys of a recipe for an adapter with the places of a saved one; with `init`, half of each rank is frozen. */
function placeHint(saved: SavedAdapter, spec: ModelSpec, init: string | null = null): string {
  const share = init === null ? 1 : 2;
  const ranks = saved.places?.ranks.map((row) => row.map((rank) => rank / share));
  const places = saved.places && ranks ? { places: { ...saved.places, ranks } } : {};
  const of = { ...saved, ...places, rank: saved.rank / share, alpha: saved.alpha / share };
  const { rank, alpha, targets, layers, rankPattern, alphaPattern } = placeFields(of, spec);
  const inline = (table: PatternTable) => {
    const entries = Object.entries(table).map(([pattern, value]) => `${JSON.stringify(pattern)} = ${value}`);
    return entries.length === 0 ? [] : [`{ ${entries.join(", ")} }`];
  };
  const lines = [
    ...(init === null ? [] : [`init = "${init}"`]),
    `rank = ${rank}`,
    ...(!isScaled(saved.method) ? [] : [`alpha = ${alpha}`]),
    `targets = ${JSON.stringify(targets)}`,
    ...(layers ? [`layers = ${JSON.stringify(layers)}`] : []),
    ...inline(rankPattern).map((table) => `rank_pattern = ${table}`),
    ...inline(alphaPattern).map((table) => `alpha_pattern = ${table}`),
    ...tokenLines(saved, spec),
  ];
  return `give the adapter what it has there, and no exclude:\n${lines.join("\n")}`;
}

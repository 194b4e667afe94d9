// Where a PEFT adapter acts, and with which ranks and alphas: the keys target_modules, exclude_modules,
// layers_to_transform, rank_pattern and alpha_pattern of its config, read and written.

import { RequestError } from "../base/errors.ts";
import { PatternError } from "../base/pattern.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isAll, isNamed, isTargeted, type PatternTable, patternValue } from "../base/targeting.ts";
import { isOfExperts, LINEARS, type Linear, linearsOfModel, type Module, modulePath, pathOf } from "../families/linears.ts";
import { tableModules } from "../families/tensors.ts";
import { alphaOf, rankAt, scaleAt } from "../methods/placement.ts";
import { sharesRows, TABLE_KINDS } from "../methods/tables.ts";
import type { JsonObject } from "./json.ts";
import type { PeftAdapter } from "./peft.ts";
import { expertPath } from "./peftexperts.ts";

export type ConfiguredPlaces = {
  /** Null where a config does not say, as those not written by PEFT. */
  readonly isTargeted: ((layer: number, linear: Linear) => boolean) | null;
  /** The pattern's, or null where none matches. */
  readonly rankAt: (layer: number, linear: Linear) => number | null;
  readonly alphaAt: (layer: number, linear: Linear) => number | null;
  /** The keys that decide what is targeted, for messages. */
  readonly keys: string;
};

const TARGETING = ["target_modules", "exclude_modules", "layers_to_transform"] as const;

/**
 * `tower`: as the file calls it. Throws a RequestError, `peft.config`, for values that PEFT does not take or this program
 * cannot read.
 */
export function configuredPlaces(config: JsonObject, path: string, tower: string, spec: ModelSpec): ConfiguredPlaces {
  const wrong = (key: string, wanted: string) =>
    new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(config[key])}, expected ${wanted}`);
  const names = (key: string): string | readonly string[] | null => {
    const value = config[key] ?? null;
    const isList = Array.isArray(value) && value.every((name) => typeof name === "string");
    if (value !== null && typeof value !== "string" && !isList) throw wrong(key, "a list of modules or a regular expression");
    return value as string | readonly string[] | null;
  };
  const table = (key: string, isRight: (value: number) => boolean, wanted: string): PatternTable => {
    const value = config[key] ?? {};
    if (typeof value !== "object" || Array.isArray(value) || !Object.values(value).every((of) => isRight(of as number)))
      throw wrong(key, `a table of ${wanted}`);
    return value as PatternTable;
  };
  const ranks = table("rank_pattern", (value) => Number.isInteger(value) && value > 0, "whole numbers above 0");
  const alphas = table("alpha_pattern", (value) => Number.isFinite(value) && value > 0, "numbers above 0");
  const [targets, exclude] = [names("target_modules"), names("exclude_modules")];
  const given = config["layers_to_transform"] ?? null;
  const layers = typeof given === "number" ? [given] : given;
  if (layers !== null && !(Array.isArray(layers) && layers.every(Number.isInteger)))
    throw wrong("layers_to_transform", "a layer or a list of layers");
  const only = layers === null || layers.length === 0 ? null : (layers as readonly number[]);
  if (only !== null && typeof targets === "string")
    throw wrong("layers_to_transform", "none with a target_modules that is a string");
  const pattern = config["layers_pattern"] ?? [];
  const patterns: readonly unknown[] = Array.isArray(pattern) ? pattern : pattern === "" ? [] : [pattern];
  if (only !== null && patterns.length > 0 && !patterns.includes("layers"))
    throw wrong("layers_pattern", '"layers", as the layers of the base model are called');
  const read = <T>(key: string, value: () => T): T => {
    try {
      return value();
    } catch (error) {
      if (error instanceof PatternError) throw new RequestError("peft.config", `${path}: ${key}: ${error.message}`);
      throw error;
    }
  };
  const parameters = names("target_parameters") ?? [];
  if (typeof parameters === "string") throw wrong("target_parameters", "a list of parameters");
  const isFused = parameters.length > 0;
  const expertAt = (layer: number, linear: Linear) => expertPath({ spec, tower, layer, linear, isFused });
  const pathAt = (layer: number, linear: Linear) =>
    isOfExperts(linear) ? expertAt(layer, linear) : pathOf(tower, layer, linear);
  const at = (key: string, of: PatternTable) => (layer: number, linear: Linear) =>
    read(key, () => patternValue(of, pathAt(layer, linear)));
  const isTargetedAt = (layer: number, linear: Linear): boolean => {
    if (isOfExperts(linear) && isFused) return isNamed(pathAt(layer, linear), parameters);
    if (isOfExperts(linear) && (targets === null || isAll(targets))) return false;
    return isTargeted({ targets: targets!, exclude, layers: only }, layer, pathAt(layer, linear));
  };
  return {
    isTargeted:
      targets === null && !isFused
        ? null
        : (layer, linear) =>
            (targets !== null || isOfExperts(linear)) && read("target_modules", () => isTargetedAt(layer, linear)),
    rankAt: at("rank_pattern", ranks),
    alphaAt: at("alpha_pattern", alphas),
    keys: TARGETING.filter((key) => config[key] != null && `${config[key]}` !== "")
      .map((key) => `${key} ${short(JSON.stringify(config[key]))}`)
      .join(", "),
  };
}

const short = (text: string): string => (text.length > 200 ? `${text.slice(0, 197)}...` : text);

type Of = Omit<PeftAdapter, "settings" | "shared" | "begun">;
type Model = Pick<ModelSpec, "family" | "tower" | "tiedEmbeddings">;

export type PlaceFields = {
  readonly rank: number;
  readonly alpha: number;
  readonly targets: readonly string[];
  readonly layers: readonly number[] | null;
  readonly rankPattern: PatternTable;
  readonly alphaPattern: PatternTable;
};

/**
 * The keys of a config that PEFT reads as this adapter's places: linears by name where each layer has all or none of them,
 * else whole paths.
 */
export function placeFields(adapter: Of, spec: Model): PlaceFields {
  const { rank, alpha, rslora, places } = adapter;
  const nameOf = namesOf(spec);
  const targets = adapter.targets.map(nameOf);
  const tables = tableFields(adapter, spec);
  if (targets.length === 0 && tables.length > 0) {
    const [{ rank, alpha }] = tables as [TableField];
    return withTables({ rank, alpha, targets, layers: null, rankPattern: {}, alphaPattern: {} }, tables);
  }
  if (!places) return withTables({ rank, alpha, targets, layers: null, rankPattern: {}, alphaPattern: {} }, tables);
  const of = { ...adapter, scale: 0 };
  const sites: Module[] = range(places.ranks.length).flatMap((layer) =>
    LINEARS.filter((linear) => rankAt(of, layer, linear) > 0).map((linear) => ({
      layer,
      linear,
      path: pathOf(spec.tower, layer, linear),
    })),
  );
  const ranks = new Map(sites.map((site) => [site, rankAt(of, site.layer, site.linear)]));
  const alphas = new Map(
    sites.map((site) => [site, alphaOf(scaleAt(of, site.layer, site.linear), ranks.get(site)!, rslora)] as const),
  );
  const layers = [...new Set(sites.map(({ layer }) => layer))];
  const isEven = sites.length === layers.length * targets.length;
  const some = isEven && layers.length < places.ranks.length;
  const [base, baseAlpha] = [commonest(ranks.values()), commonest(alphas.values())];
  const fields = {
    ...{ rank: base, alpha: baseAlpha },
    targets: isEven ? targets : sites.map(({ path }) => path),
    layers: some ? layers : null,
    rankPattern: patternOf(ranks, base, nameOf),
    alphaPattern: patternOf(alphas, baseAlpha, nameOf),
  };
  return withTables(fields, tables);
}

type TableField = { readonly path: string; readonly rank: number; readonly alpha: number };
const escaped = (path: string): string => path.replaceAll(".", "\\.");

/** Tables with a product, by their paths. */
function tableFields({ tables = {}, rslora }: Of, spec: Model): TableField[] {
  const modules = tableModules(spec);
  return TABLE_KINDS.flatMap((kind) => {
    const table = tables[kind];
    if (!table || "tokens" in table) return [];
    return [{ path: modules[kind], rank: table.rank, alpha: alphaOf(table.scale, table.rank, rslora) }];
  });
}
const tablePaths = (adapter: Of, spec: Model): string[] => tableFields(adapter, spec).map(({ path }) => path);

/** With the tables among the targets, as whole paths: PEFT takes these whatever layers_to_transform says. */
function withTables(fields: PlaceFields, tables: readonly TableField[]): PlaceFields {
  if (tables.length === 0) return fields;
  const other = (key: "rank" | "alpha") =>
    Object.fromEntries(tables.filter((of) => of[key] !== fields[key]).map((of) => [escaped(of.path), of[key]]));
  return {
    ...fields,
    targets: [...fields.targets, ...tables.map(({ path }) => path)],
    rankPattern: { ...fields.rankPattern, ...other("rank") },
    alphaPattern: { ...fields.alphaPattern, ...other("alpha") },
  };
}

/** The tokens whose rows are trained, by module; of tied tables those of the embedding serve both. */
function tokensOf({ tables = {} }: Of, spec: Model): Readonly<Record<string, readonly number[]>> | null {
  const modules = tableModules(spec);
  const found = TABLE_KINDS.flatMap((kind): [string, readonly number[]][] => {
    const table = tables[kind];
    if (!table || !("tokens" in table) || (kind === "head" && sharesRows(spec, tables))) return [];
    return [[modules[kind].slice(modules[kind].lastIndexOf(".") + 1), table.tokens]];
  });
  return found.length > 0 ? Object.fromEntries(found) : null;
}

/** The last component of a linear's path, or all of it where the model has another linear with the same last one. */
const namesOf = (spec: Model) => {
  const paths = linearsOfModel(spec).map(modulePath);
  return (linear: Linear): string =>
    paths.some((path) => path !== modulePath(linear) && path.endsWith(`.${linear}`)) ? modulePath(linear) : linear;
};

/**
 * The same for a file. A name in a list would be that of linears in a model's other parts, too, so that those of a tower are a
 * regular expression of whole paths.
 */
export function placesOfFile(
  adapter: Of,
  spec: Model,
): Omit<PlaceFields, "targets"> & {
  readonly targets: string | readonly string[];
  readonly tokens: Readonly<Record<string, readonly number[]>> | null;
} {
  const fields = { ...placeFields(adapter, spec), tokens: tokensOf(adapter, spec) };
  if (spec.tower === "model") return fields;
  const { layers } = fields;
  const tables = tablePaths(adapter, spec);
  const targets = fields.targets.filter((target) => !tables.includes(target));
  const isWhole = targets.some((target) => target.startsWith(`${spec.tower}.`));
  const ends = adapter.targets.map((linear) => escaped(modulePath(linear))).join("|");
  const ofLayers = isWhole
    ? targets.map(escaped)
    : targets.length === 0
      ? []
      : [`${escaped(spec.tower)}\\.layers\\.(${layers ? layers.join("|") : "\\d+"})\\.(${ends})`];
  return { ...fields, layers: null, targets: [...ofLayers, ...tables.map(escaped)].join("|") };
}

/** By the linear's name where all its layers have one value, else by whole paths; what has the common value is left out. */
function patternOf(values: ReadonlyMap<Module, number>, common: number, nameOf: (linear: Linear) => string): PatternTable {
  return Object.fromEntries(
    LINEARS.flatMap((linear) => {
      const own = [...values].filter(([site]) => site.linear === linear);
      const other = own.filter(([, value]) => value !== common);
      if (other.length === own.length && new Set(other.map(([, value]) => value)).size === 1)
        return [[nameOf(linear).replaceAll(".", "\\."), other[0]![1]]];
      return other.map(([{ path }, value]): [string, number] => [path.replaceAll(".", "\\."), value]);
    }),
  );
}

function commonest(values: Iterable<number>): number {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
}

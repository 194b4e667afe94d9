// The rotary embeddings of config.json: rope_theta and rope_scaling, or rope_parameters since transformers 5, for all layers or
// for each kind of layer.

import { RequestError } from "../base/errors.ts";
import type { Rope, RopeScaling } from "../base/spec.ts";
import { counted } from "../base/units.ts";
import { type ConfigObject, ConfigReader } from "./config.ts";

export type RopeDefaults = {
  readonly headDim: number;
  readonly maxPositions: number;
  /** Without rope_theta; left out: 10000. */
  readonly theta?: number;
  /** Whether the family reads partial_rotary_factor; left out: it must be 1. */
  readonly isPartial?: boolean;
};

const isObject = (value: unknown): value is ConfigObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isGiven = (value: unknown): boolean => value != null && (typeof value !== "object" || Object.keys(value).length > 0);

/** The rope of all layers. */
export function readRope(config: ConfigReader, defaults: RopeDefaults): Rope {
  const { key, table } = tableOf(config);
  for (const [layers, value] of Object.entries(table))
    if (isObject(value))
      throw new RequestError(
        "model.rope",
        `${config.path}: ${key}.${layers} is ${JSON.stringify(value)}, a table for some of the layers`,
        "only one rope for all layers is supported",
      );
  return ropeOf(new ConfigReader(table, `${config.path}: ${key}`), config, defaults);
}

/**
 * What the scores of attention over latents are multiplied by where its rope is scaled: transformers squares mscale_all_dim's
 * share of YaRN's magnitude into them, whatever the scaling.
 */
export function readScoreScale(config: ConfigReader): number {
  const { key, table } = tableOf(config);
  const type = table["rope_type"] ?? table["type"] ?? "default";
  if (type === "default" || !table["mscale_all_dim"]) return 1;
  const inner = new ConfigReader(table, `${config.path}: ${key}`);
  return magnitudeOf(inner.number("factor", null), inner.number("mscale_all_dim", null)) ** 2;
}

/** YaRN's magnitude of positions that are `factor` times as many, with a share of its growth. */
const magnitudeOf = (factor: number, share: number): number => (factor <= 1 ? 1 : 0.1 * share * Math.log(factor) + 1);

/** Where the config has rope_parameters by kind of layer, those of one kind; null where it has none. */
export function readRopeOf(config: ConfigReader, kind: string, defaults: RopeDefaults): Rope | null {
  const { key, table } = tableOf(config);
  const own = table[kind];
  if (!isObject(own)) return null;
  const nested = { ...own, truncate: table["truncate"] ?? true }; // which transformers reads outside
  const { rope_theta, partial_rotary_factor } = config.source;
  const outer = new ConfigReader({ rope_theta, partial_rotary_factor }, config.path);
  return ropeOf(new ConfigReader(nested, `${config.path}: ${key}.${kind}`), outer, defaults);
}

/**
 * The ropes of full and of sliding layers, of families that had one table of old: rope_scaling was the full layers', and since
 * transformers 5 it is put over what rope_parameters has for them. `thetas`: of the config, where a table has none.
 */
export function readRopesByKind(
  config: ConfigReader,
  thetas: Readonly<Record<"full" | "sliding", unknown>>,
  defaults: Readonly<Record<"full" | "sliding", RopeDefaults>>,
): readonly [full: Rope, sliding: Rope] {
  const { rope_parameters: given, rope_scaling: scaling } = config.source;
  const tables = isObject(given) ? given : {};
  const of = (kind: string): ConfigObject => (isObject(tables[kind]) ? tables[kind] : {});
  const rope = (table: ConfigObject, kind: "full" | "sliding") => {
    const own = { ...table, truncate: tables["truncate"] ?? true }; // which transformers reads outside
    const one = { rope_parameters: own, rope_theta: table["rope_theta"] ?? thetas[kind] };
    return readRope(new ConfigReader(one, config.path), defaults[kind]);
  };
  const own = isObject(tables["full_attention"]) ? of("full_attention") : { rope_type: "default" };
  const full: ConfigObject = { ...own, ...(isObject(scaling) ? scaling : {}) };
  checkType(config, isObject(scaling) ? scaling : {}, full["rope_type"]);
  return [rope(full, "full"), rope(of("sliding_attention"), "sliding")];
}

/** Refuses a rope_scaling whose `type`, of older files, transformers passes over: it is put over a table with a rope_type. */
function checkType({ path }: ConfigReader, scaling: ConfigObject, type: unknown): void {
  const { type: older, rope_type: own } = scaling;
  if (older === undefined || own !== undefined || type === undefined || type === older) return;
  throw new RequestError(
    "model.rope",
    `${path}: rope_scaling.type is ${JSON.stringify(older)}, which transformers passes over in this family`,
    "name it rope_type",
  );
}

/** rope_scaling wins over rope_parameters. */
function tableOf(config: ConfigReader): { readonly key: string; readonly table: ConfigObject } {
  const { source } = config;
  const key = isGiven(source["rope_scaling"]) || source["rope_parameters"] == null ? "rope_scaling" : "rope_parameters";
  const table = source[key] ?? {};
  if (!isObject(table)) throw config.wrong(key, `is ${JSON.stringify(table)}, expected an object`);
  return { key, table };
}

function ropeOf(inner: ConfigReader, config: ConfigReader, defaults: RopeDefaults): Rope {
  const { headDim, theta: fallback = 10000, isPartial = false } = defaults;
  const type = inner.source["rope_type"] ?? inner.source["type"] ?? "default";
  const theta = inner.source["rope_theta"] == null ? config.number("rope_theta", fallback) : inner.number("rope_theta", null);
  const [share, at] = [inner, config]
    .map((of) => [of.source["partial_rotary_factor"], of] as const)
    .find(([of]) => of != null) ?? [1, config];
  if (typeof share !== "number" || !(share > 0 && share <= 1))
    throw at.wrong("partial_rotary_factor", `is ${JSON.stringify(share)}, expected a number above 0 and up to 1`);
  const isProportional = type === "proportional";
  if (share !== 1 && !isPartial && !isProportional)
    throw new RequestError("model.rope", `${at.path}: partial_rotary_factor is ${share}`, "only 1 is supported in this family");
  const rotated = isProportional ? headDim : Math.floor(headDim * share);
  if (rotated % 2 !== 0)
    throw at.wrong("partial_rotary_factor", `${share} rotates ${rotated} features of a head, expected pairs`);
  const read = SCALINGS.get(type);
  if (!read)
    throw new RequestError(
      "model.rope",
      `${inner.path}: the rope type is ${JSON.stringify(type)}`,
      `supported are ${[...SCALINGS.keys()].join(", ")}`,
    );
  const scaling = read({ inner, config, maxPositions: defaults.maxPositions, pairs: rotated / 2, share });
  return { headDim, rotated, theta, scaling, queryScale: null };
}

type Given = {
  readonly inner: ConfigReader;
  readonly config: ConfigReader;
  readonly maxPositions: number;
  readonly pairs: number;
  readonly share: number;
};

const SCALINGS: ReadonlyMap<unknown, (given: Given) => RopeScaling | null> = new Map<
  string,
  (given: Given) => RopeScaling | null
>([
  ["default", () => null],
  ["mrope", () => null], // text has one position for time, height and width
  ["linear", ({ inner }) => ({ kind: "linear", factor: inner.number("factor", null) })],
  ["llama3", llama3],
  ["yarn", yarn],
  ["longrope", longrope],
  ["proportional", ({ inner, share }) => ({ kind: "proportional", factor: inner.number("factor", 1), share })],
]);

/** As transformers 5: a value outside the table wins, and without one all positions are original ones. */
export function originalPositions({ inner, config, maxPositions }: Pick<Given, "inner" | "config" | "maxPositions">): number {
  const key = "original_max_position_embeddings";
  const from = [config, inner].find(({ source }) => Object.hasOwn(source, key));
  return from?.count(key, null) ?? maxPositions;
}

function llama3(given: Given): RopeScaling {
  const { inner } = given;
  const [lowFreqFactor, highFreqFactor] = [inner.number("low_freq_factor", null), inner.number("high_freq_factor", null)];
  if (highFreqFactor <= lowFreqFactor)
    throw inner.wrong("high_freq_factor", `${highFreqFactor} is not above low_freq_factor, ${lowFreqFactor}`);
  const originalMaxPositions = originalPositions(given);
  return { kind: "llama3", factor: inner.number("factor", null), lowFreqFactor, highFreqFactor, originalMaxPositions };
}

/** YaRN (Peng et al. 2023). Without a factor it is the ratio of the positions now to the original ones. */
function yarn(given: Given): RopeScaling {
  const { inner, maxPositions } = given;
  const originalMaxPositions = originalPositions(given);
  const factor = inner.number("factor", maxPositions / originalMaxPositions);
  const scale = (of: number) => magnitudeOf(factor, of);
  const isSet = inner.source["mscale"] && inner.source["mscale_all_dim"];
  const own = isSet ? scale(inner.number("mscale", null)) / scale(inner.number("mscale_all_dim", null)) : scale(1);
  return {
    kind: "yarn",
    factor,
    originalMaxPositions,
    betaFast: inner.number("beta_fast", 32),
    betaSlow: inner.number("beta_slow", 1),
    truncate: inner.flag("truncate", true),
    magnitude: inner.number("attention_factor", own),
  };
}

/** LongRoPE (Ding et al. 2024). */
function longrope(given: Given): RopeScaling {
  const { inner, maxPositions, pairs } = given;
  const factors = (key: string): number[] => {
    const value = inner.source[key];
    if (!Array.isArray(value) || value.length !== pairs || !value.every((of) => Number.isFinite(of) && of > 0))
      throw inner.wrong(key, `is ${brief(value)}, expected ${counted(pairs, "number")} above 0`);
    return value;
  };
  const originalMaxPositions = originalPositions(given);
  const ratio = inner.number("factor", maxPositions / originalMaxPositions);
  const own = ratio <= 1 ? 1 : Math.sqrt(1 + Math.log(ratio) / Math.log(originalMaxPositions));
  return {
    kind: "longrope",
    short: factors("short_factor"),
    long: factors("long_factor"),
    originalMaxPositions,
    magnitude: inner.number("attention_factor", own),
  };
}

const brief = (value: unknown): string => (Array.isArray(value) ? counted(value.length, "value") : JSON.stringify(value));

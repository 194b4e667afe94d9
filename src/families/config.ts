// Values of a config.json, checked: errors name file and key.

import { RequestError } from "../base/errors.ts";
import type { RopeScaling } from "../base/spec.ts";

export type ConfigObject = Readonly<Record<string, unknown>>;

/** The largest size in a config; a larger number is a mistake. */
const LARGEST = 1 << 30;

export class ConfigReader {
  constructor(
    readonly source: ConfigObject,
    readonly path: string,
  ) {}

  wrong(key: string, what: string): RequestError {
    return new RequestError("model.config", `${this.path}: ${key} ${what}`);
  }

  /** A finite number above 0; `fallback` null: the key is required. */
  number(key: string, fallback: number | null): number {
    const value = this.source[key] ?? fallback;
    if (value === null) throw this.wrong(key, Object.hasOwn(this.source, key) ? "is null" : "is missing");
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
      throw this.wrong(key, `is ${JSON.stringify(value)}, expected a number above 0`);
    return value;
  }

  /** A whole number from 1 on. */
  count(key: string, fallback: number | null): number {
    const value = this.number(key, fallback);
    if (!Number.isInteger(value) || value > LARGEST)
      throw this.wrong(key, `is ${value}, expected a whole number from 1 to ${LARGEST}`);
    return value;
  }

  /** A whole number from 0 on. */
  whole(key: string): number {
    const value = this.source[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > LARGEST)
      throw this.wrong(key, `is ${JSON.stringify(value)}, expected a whole number from 0 to ${LARGEST}`);
    return value;
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.source[key] ?? fallback;
    if (typeof value !== "boolean") throw this.wrong(key, `is ${JSON.stringify(value)}, expected true or false`);
    return value;
  }

  /** Refuses values that change what the layers compute. */
  only(key: string, supported: string | number): void {
    const value = this.source[key];
    if (value != null && value !== supported)
      throw new RequestError(
        "model.architecture",
        `${this.path}: ${key} is ${JSON.stringify(value)}`,
        `only ${JSON.stringify(supported)} is supported`,
      );
  }
}

const isGiven = (value: unknown): boolean => value != null && (typeof value !== "object" || Object.keys(value).length > 0);

/** rope_theta and rope_scaling, or rope_parameters since transformers 5, where the former wins over the latter. */
export function readRope(
  config: ConfigReader,
  maxPositions: number,
): { readonly ropeTheta: number; readonly ropeScaling: RopeScaling | null } {
  const { source } = config;
  const key = isGiven(source["rope_scaling"]) || source["rope_parameters"] == null ? "rope_scaling" : "rope_parameters";
  const table = source[key];
  if (table != null && (typeof table !== "object" || Array.isArray(table)))
    throw config.wrong(key, `is ${JSON.stringify(table)}, expected an object`);
  for (const [layers, value] of Object.entries(table ?? {}))
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      throw new RequestError(
        "model.rope",
        `${config.path}: ${key}.${layers} is ${JSON.stringify(value)}, a table for some of the layers`,
        "only one rope for all layers is supported",
      );
  const inner = new ConfigReader((table ?? {}) as ConfigObject, `${config.path}: ${key}`);
  const type = inner.source["rope_type"] ?? inner.source["type"] ?? "default";
  const ropeTheta = inner.source["rope_theta"] == null ? config.number("rope_theta", 10000) : inner.number("rope_theta", null);
  if (inner.source["partial_rotary_factor"] != null && inner.source["partial_rotary_factor"] !== 1)
    throw new RequestError(
      "model.rope",
      `${inner.path}: partial_rotary_factor is ${inner.source["partial_rotary_factor"]}`,
      "only 1 is supported",
    );
  if (type === "default") return { ropeTheta, ropeScaling: null };
  if (type === "linear") return { ropeTheta, ropeScaling: { kind: "linear", factor: inner.number("factor", null) } };
  if (type !== "llama3")
    throw new RequestError(
      "model.rope",
      `${inner.path}: the rope type is ${JSON.stringify(type)}`,
      "supported are default, linear and llama3",
    );
  const [lowFreqFactor, highFreqFactor] = [inner.number("low_freq_factor", null), inner.number("high_freq_factor", null)];
  if (highFreqFactor <= lowFreqFactor)
    throw inner.wrong("high_freq_factor", `${highFreqFactor} is not above low_freq_factor, ${lowFreqFactor}`);
  // As transformers 5: a value outside the table wins, and without one all positions are original ones.
  const original = "original_max_position_embeddings";
  const from = [config, inner].find(({ source }) => Object.hasOwn(source, original));
  const originalMaxPositions = from?.count(original, null) ?? maxPositions;
  return {
    ropeTheta,
    ropeScaling: { kind: "llama3", factor: inner.number("factor", null), lowFreqFactor, highFreqFactor, originalMaxPositions },
  };
}

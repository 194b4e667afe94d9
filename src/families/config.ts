// Values of a config.json, checked: errors name file and key.

import { RequestError } from "../base/errors.ts";

export type ConfigObject = Readonly<Record<string, unknown>>;

/** The largest size in a config; a larger number is a mistake. */
const LARGEST = 1 << 30;
/** The most layers: they are gone through one by one, before anything is held against the weights. */
const MOST_LAYERS = 1 << 12;

export class ConfigReader {
  constructor(
    readonly source: ConfigObject,
    readonly path: string,
  ) {}

  /** The same with other values of some keys. */
  with(values: ConfigObject): ConfigReader {
    return new ConfigReader({ ...this.source, ...values }, this.path);
  }

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

  /** Refuses null: it is not the default, for which the key is left out. */
  notNull(key: string): void {
    if (this.source[key] === null) throw this.wrong(key, "is null, expected a number, or no such key");
  }

  /** A whole number from 1 on. */
  count(key: string, fallback: number | null, most = LARGEST): number {
    const value = this.number(key, fallback);
    if (!Number.isInteger(value) || value > most)
      throw this.wrong(key, `is ${value}, expected a whole number from 1 to ${most}`);
    return value;
  }

  layers(fallback: number): number {
    return this.count("num_hidden_layers", fallback, MOST_LAYERS);
  }

  /** A whole number from 0 on. */
  whole(key: string): number {
    const value = this.source[key];
    if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > LARGEST)
      throw this.wrong(key, `is ${JSON.stringify(value)}, expected a whole number from 0 to ${LARGEST}`);
    return value;
  }

  /** True or false; null is false to transformers where it is not refused, so it is no word for `true`. */
  flag(key: string, fallback: boolean): boolean {
    if (fallback && this.source[key] === null) throw this.wrong(key, "is null, expected true or false, or no such key");
    const value = this.source[key] ?? fallback;
    if (typeof value !== "boolean") throw this.wrong(key, `is ${JSON.stringify(value)}, expected true or false`);
    return value;
  }

  /** Refuses values that change what the layers compute. */
  only(key: string, supported: string | number | boolean): void {
    const value = this.source[key];
    if (value != null && value !== supported)
      throw new RequestError(
        "model.architecture",
        `${this.path}: ${key} is ${JSON.stringify(value)}`,
        `only ${JSON.stringify(supported)} is supported`,
      );
  }
}

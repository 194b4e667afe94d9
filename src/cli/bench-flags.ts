// What the flags of `mlora bench` are checked by.

import { RequestError } from "../base/errors.ts";
import { oneOf, wholeNumber } from "./flags.ts";

/** Makes an option of each flag that is given. */
export type Checks<Options> = { readonly [Flag in keyof Options]-?: (value: unknown) => Options[Flag] };

export const natural = (flag: string, most?: number) => (value: unknown) => wholeNumber(flag, value, 1, most);
export const choice =
  <T extends string>(flag: string, allowed: readonly T[]) =>
  (value: unknown) =>
    oneOf(flag, `${value}`, allowed);

/** Those that were given, checked. */
export const given = <Options>(checks: Checks<Options>, flags: Readonly<Record<string, unknown>>): Options =>
  Object.fromEntries(
    Object.entries<(value: unknown) => unknown>(checks).flatMap(([flag, check]) => {
      const value = flags[flag];
      return value === undefined ? [] : [[flag, check(value)]];
    }),
  ) as Options;

/** "promptTokens" as it is written: "prompt-tokens". */
export const dashed = (flag: string): string => flag.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** As in a recipe. */
export const MOST = { adapters: 4096, rows: 65_536, tokens: 1 << 24, stages: 256 } as const;
const MOST_RANK = 1 << 16;

export const ranksOf = (value: unknown): number | readonly number[] => numbersOf("rank", value, 1, MOST_RANK);

/** A whole number, or several numbers with commas between them, multiples of `step`. */
export function numbersOf(flag: string, value: unknown, step: number, most: number): number | readonly number[] {
  const numbers = `${value}`.split(",").map(Number);
  if (numbers.length === 1) return wholeNumber(flag, value, 1, most);
  if (numbers.every((n) => Number.isInteger(n / step) && n > 0)) return numbers;
  throw new RequestError("cli.flag", `--${flag} is ${value}`, `give --${flag} a number, or numbers with commas between them`);
}

// Which modules an adapter acts on, and with which rank and alpha, by PEFT's rules (0.21: check_target_module_exists,
// get_pattern_key).

import { compilePattern } from "./pattern.ts";

export type Targeting = {
  /** Modules by the end of their paths, a regular expression of whole paths, or "all-linear". */
  readonly targets: string | readonly string[];
  /** As targets; wins over them. */
  readonly exclude: string | readonly string[] | null;
  /** The only layers; null: all. */
  readonly layers: readonly number[] | null;
};

/** By a regular expression of the ends of modules' paths; the first that matches counts. */
export type PatternTable = Readonly<Record<string, number>>;

/** Whether a path is named by its end, or matched as a whole. Throws a PatternError. */
export function isNamed(path: string, by: string | readonly string[]): boolean {
  if (typeof by === "string") return compilePattern(by, "whole").test(path);
  return by.some((name) => path === name || path.endsWith(`.${name}`));
}

/**
 * Whether an adapter acts on a linear of `layer`, by its path. A list may name whole paths, whatever `layers` says, as in PEFT.
 * `isHidden`: a linear that "all-linear" does not mean.
 */
export function isTargeted({ targets, exclude, layers }: Targeting, layer: number, path: string, isHidden = false): boolean {
  if (isHidden) return false;
  if (exclude !== null && isNamed(path, exclude)) return false;
  if (typeof targets !== "string" && targets.includes(path)) return true;
  if (layers !== null && !layers.includes(layer)) return false;
  return isAll(targets) || isNamed(path, targets);
}

export const isAll = (targets: string | readonly string[]): boolean =>
  typeof targets === "string" && targets.toLowerCase() === "all-linear";

/** The value of the first pattern that matches the path. Throws a PatternError. */
export function patternValue(table: PatternTable, path: string): number | null {
  for (const [pattern, value] of Object.entries(table)) if (compilePattern(pattern, "end").test(path)) return value;
  return null;
}

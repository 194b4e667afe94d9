// The cuda device as kernels see it: how one of the contract becomes launches of compiled ones.

import type { Argument, Grid } from "./kernel.ts";
import type { Choice, Variant } from "./variants.ts";

export type Launcher = {
  readonly compute: "f32" | "bf16";
  readonly multiprocessors: number;
  /** Finds the variant of a launch; what decides its grid is among its constants. Called before what a batch alone decides. */
  kernel(name: string, choice?: Choice): Variant;
  /** All variants with these constants, in the order of the table of what is compiled: one of them is launched. */
  variants(name: string, choice?: Choice): readonly Variant[];
  /** Enqueues what both launch, `other` concurrently with `work`; what is enqueued later comes after both. */
  concurrently(work: () => void, other: () => void): void;
  launch(kernel: Variant, grid: Grid, args: Readonly<Record<string, Argument>>): void;
  /** Scratch of all launches, one after the other: at least `bytes`, else the plan was wrong. */
  scratch(bytes: number): number;
};

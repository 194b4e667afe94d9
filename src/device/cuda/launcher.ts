// What the launchers of the kernel families share: how a kernel of the contract becomes launches of compiled kernels.

import { invariant } from "../../base/errors.ts";
import type { Tensor } from "../device.ts";
import type { KernelName, Kernels } from "../kernels.ts";
import type { Argument, Grid } from "./kernel.ts";
import type { Choice, Variant } from "./variants.ts";

/** The device as launchers see it. */
export type Launcher = {
  readonly compute: "f32" | "bf16";
  readonly multiprocessors: number;
  /** Whether groups of linears whose boundaries lie between tiles have kernels of their own. */
  readonly hasWhole: boolean;
  /** Finds the variant of a launch; what decides its grid is among its constants. Called before what a batch alone decides. */
  kernel(name: string, choice?: Choice): Variant;
  /** All variants with these constants, in the order of the table of what is compiled: one of them is launched. */
  variants(name: string, choice?: Choice): readonly Variant[];
  launch(kernel: Variant, grid: Grid, args: Readonly<Record<string, Argument>>): void;
  /** Scratch of all launches, one after the other: at least `bytes`, else the plan was wrong. */
  scratch(bytes: number): number;
};

export type Implementations = { readonly [K in KernelName]: (args: Kernels[K]) => void };

export const cdiv = (a: number, b: number): number => Math.ceil(a / b);

/** Size of a dimension, which ops has checked to exist. */
export function dim(tensor: Tensor, i: number): number {
  const size = tensor.shape[i];
  invariant(size !== undefined, `a tensor of ${tensor.shape.length} dimensions has no dimension ${i}`);
  return size;
}

/** Elements between the matrices of a stack. */
export const strideOf = (stack: Tensor): number => stack.stride ?? dim(stack, 1) * dim(stack, 2);

/** 1 where an optional argument is there: kernels are compiled with and without. */
export const flag = (value: unknown): 0 | 1 => (value === null ? 0 : 1);

// What each optimizer keeps of an adapter: arrays along its block (layout.ts). Steps are src/ops/adamw.ts and adamw8.ts.

import { ALIGN } from "./layout.ts";

/** An array that has one element for each `per` elements of the block; `zero` stands for 0, as between the block's tensors. */
export type StateArray = { readonly dtype: "f32" | "u8"; readonly per: number; readonly zero: number };

const EXACT: StateArray = { dtype: "f32", per: 1, zero: 0 };
const MOMENTS = { params: EXACT, m: EXACT, v: EXACT };
/** Codes of numbers with and without signs (ops/adamw8.ts). */
const SIGNED: StateArray = { dtype: "u8", per: 1, zero: 127 };
const UNSIGNED: StateArray = { dtype: "u8", per: 1, zero: 0 };
/**
 * The largest absolute value of as many elements as are always of one tensor: so no other adapter, and no other tensor, changes
 * a code. bitsandbytes takes 256, which two tensors of a block may share.
 */
const ABSMAX: StateArray = { dtype: "f32", per: ALIGN, zero: 0 };

/** By the name that a recipe gives. Of SGD, m is the momentum's buffer, and v is zero. */
const STATES = {
  adamw: MOMENTS,
  "adamw-8bit": { params: EXACT, m: SIGNED, v: UNSIGNED, mAbsmax: ABSMAX, vAbsmax: ABSMAX },
  sgd: MOMENTS,
};
export type OptimizerName = keyof typeof STATES;
export const OPTIMIZERS = Object.keys(STATES) as readonly OptimizerName[];

/** The arrays of any optimizer. */
export const BLOCKS = ["params", "m", "v", "mAbsmax", "vAbsmax"] as const;
export type BlockName = (typeof BLOCKS)[number];
type State = Readonly<Partial<Record<BlockName, StateArray>>> & { readonly params: StateArray };

/** The arrays that an optimizer has of an adapter; left out: "adamw". */
export const stateOf = (optimizer: OptimizerName = "adamw"): State => STATES[optimizer];
export const blocksIn = (optimizer?: OptimizerName): readonly BlockName[] =>
  BLOCKS.filter((what) => stateOf(optimizer)[what] !== undefined);

/** Whether its moments are codes of 8 bits. */
export const isQuantised = (optimizer?: OptimizerName): boolean => stateOf(optimizer).mAbsmax !== undefined;

/** What a stage keeps of an adapter: its part of the parameters and of what the optimizer has next to them. */
export type Values = Float32Array | Uint8Array;
export type Blocks = { readonly params: Float32Array } & {
  readonly [B in Exclude<BlockName, "params">]?: B extends "m" | "v" ? Values : Float32Array;
};

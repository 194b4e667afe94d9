// What each optimizer keeps of an adapter: arrays along the adapter's block (layout.ts). How a step is computed is
// src/ops/NAME.ts.

/** An array that has one element for each `per` elements of the block. */
export type StateArray = { readonly dtype: "f32" | "u8"; readonly per: number };

const EXACT: StateArray = { dtype: "f32", per: 1 };
const MOMENTS = { params: EXACT, m: EXACT, v: EXACT };

/** By the name that a recipe gives. Of SGD, m is the momentum's buffer, and v is zero. */
const STATES = { adamw: MOMENTS, sgd: MOMENTS };
export type OptimizerName = keyof typeof STATES;
export const OPTIMIZERS = Object.keys(STATES) as readonly OptimizerName[];

/** The arrays of any optimizer. */
export const BLOCKS = ["params", "m", "v"] as const;
export type BlockName = (typeof BLOCKS)[number];
type State = Readonly<Partial<Record<BlockName, StateArray>>> & { readonly params: StateArray };

/** The arrays that an optimizer has of an adapter; left out: "adamw". */
export const stateOf = (optimizer: OptimizerName = "adamw"): State => STATES[optimizer];
export const blocksIn = (optimizer?: OptimizerName): readonly BlockName[] =>
  BLOCKS.filter((what) => stateOf(optimizer)[what] !== undefined);

/** What a stage keeps of an adapter: its part of the parameters and of what the optimizer has next to them. */
export type Values = Float32Array | Uint8Array;
export type Blocks = Readonly<Partial<Record<BlockName, Values>>> & { readonly params: Float32Array };

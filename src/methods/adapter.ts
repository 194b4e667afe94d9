// An adapter as stages have it: numbers alone. Names, data and steps belong to the coordinator.

import * as v from "valibot";
import { count, natural, type Output, real } from "../base/schema.ts";
import { LINEARS } from "../families/linears.ts";
import { type Init, isInit } from "./init.ts";
import { OPTIMIZERS } from "./optimizers.ts";
import { PEFT_METHODS, stageEntries } from "./registry.ts";
import { EXPERT_SHARINGS } from "./sharing.ts";
import { tables } from "./tables.ts";

/** [layers][linears], in the order of LINEARS; rank 0 where the adapter has nothing. `scales` are the factors on B A. */
const placement = v.strictObject({
  ranks: v.array(v.array(count)),
  scales: v.array(v.array(real)),
  /** Of an adapter that acts in experts. */
  experts: v.exactOptional(v.picklist(EXPERT_SHARINGS)),
});
export type Placement = Output<typeof placement>;

export const stageAdapter = v.strictObject({
  /** With `places` the largest rank; of one that trains single tokens alone 1. */
  rank: natural,
  /** Multiplies B A x; only `scaleOf` derives it from alpha and rank. */
  scale: real,
  /** With `places` the linears of any layer. */
  targets: v.array(v.picklist(LINEARS)),
  /** Where layers or linears differ. */
  places: v.exactOptional(placement),
  /** What it trains of embedding and head. */
  tables: v.exactOptional(tables),
  /** Decides its initial factors. */
  seed: count,
  method: v.exactOptional(v.picklist(PEFT_METHODS)),
  /** Decides what is kept next to its parameters. */
  optimizer: v.exactOptional(v.picklist(OPTIMIZERS)),
  ...stageEntries,
  /** Null: all is zero, until it is written. */
  init: v.nullable(v.custom<Init>((text) => typeof text === "string" && isInit(text))),
  /** Ranks from here on are frozen (methods/init.ts, isSvdInit); without it none is. */
  trainedRank: v.exactOptional(natural),
  /** Its rows are rotated by the long factors of a LongRoPE: they may be longer than the original positions. */
  isLong: v.exactOptional(v.boolean()),
});

/** An adapter to initialise. */
export type StageAdapter = Output<typeof stageAdapter>;
/** An adapter in a slot of the pool, whatever its first values. */
export type PoolAdapter = Omit<StageAdapter, "seed" | "init">;
/** Where an adapter acts, by which rank and scale. */
export type PlacedAdapter = Pick<StageAdapter, "rank" | "scale" | "targets" | "places" | "tables">;
/** The same without scales. */
export type Placed = Pick<PlacedAdapter, "rank" | "targets"> & {
  readonly places?: Placement | undefined;
  readonly tables?: PlacedAdapter["tables"] | undefined;
};

// What a PEFT method is: the tensors that an adapter has of each linear, its keys in a recipe, its part of PEFT's files,
// and what merging makes of a weight. How it is computed is src/engine/methods/NAME.ts.

import type * as v from "valibot";
import type { CamelKeys } from "../base/case.ts";
import type { Output } from "../base/schema.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { PatternTable } from "../base/targeting.ts";
import type { Linear } from "../families/linears.ts";

/** The axes of a linear's tensor: `in` and `out` of its weight [out, in], and the adapter's rank there. */
export type Axes = "rank in" | "out rank" | "out" | "rank";

/** The largest rank there is. */
export const MOST_RANK = 256;

/** Values of a method's own keys, by their names in camelCase. */
export type Settings = Readonly<Record<string, unknown>>;
export type SettingsOf<E extends v.ObjectEntries> = Partial<CamelKeys<{ readonly [K in keyof E]: Output<E[K]> }>>;

/** A tensor that an adapter has of each linear that it targets. Those of the low-rank product, A and B, are lora.ts's. */
export type StoredTensor<S = Settings> = {
  readonly axes: Axes;
  /** Its values before the first step: by the recipe's `init`, or one number. */
  readonly initial: "init" | ((settings: S) => number);
  /** Its name in PEFT's files, after the module's path. */
  readonly peft: string;
};

type JsonObject = Readonly<Record<string, unknown>>;

/** What PEFT's config says of an adapter. */
export type PeftFields<S = Settings> = {
  readonly baseModel: string;
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly rslora: boolean;
  /** Linears by name, or whole paths; a string is a regular expression of these. */
  readonly targets: string | readonly string[];
  /** Parameters of experts, by the ends of their paths; null for none. */
  readonly parameters: readonly string[] | null;
  readonly layers: readonly number[] | null;
  readonly rankPattern: PatternTable;
  readonly alphaPattern: PatternTable;
  /** Tokens whose rows of a table are trained, by its module. */
  readonly tokens?: Readonly<Record<string, readonly number[]>> | null;
  readonly settings: S;
};

/** A tensor that is once in a file for all linears, and follows from the adapter's settings. */
export type SharedTensor = {
  readonly name: string;
  readonly shape: readonly [rows: number, columns: number];
  readonly values: () => Float32Array<ArrayBuffer>;
};

/** A matrix as a file has it. */
export type SavedMatrix = { readonly values: Float32Array; readonly columns: number };

export type SharedTensors<S = Settings> = {
  /** Their name in messages. */
  readonly name: string;
  /** The hint where a file lacks them. */
  readonly missing: string;
  readonly tensors: (spec: ModelSpec, targets: readonly Linear[], rank: number, settings: S) => readonly SharedTensor[];
  /**
   * A [rank, in] or B [out, rank] of a linear, by its own tensors and the shared ones in their order: with these the
   * adapter is a LoRA of scale 1.
   */
  readonly factor: (
    name: "A" | "B",
    width: number,
    shared: readonly SavedMatrix[],
    own: (name: string) => Float32Array,
  ) => Float32Array;
};

/** How PEFT's files have it. */
export type PeftFormat<S = Settings> = {
  readonly peftType: string;
  /** Whether a config of this type is one of the method. */
  readonly isOf: (config: JsonObject) => boolean;
  readonly dropout: string;
  /** Keys of a config that are read, or that have no effect on the numbers, next to those that all types have. */
  readonly keys: readonly string[];
  /** The config as PEFT writes it; fields without a value here have PEFT's defaults. */
  readonly config: (fields: PeftFields<S>) => object;
  readonly settings?: (config: JsonObject) => Settings;
  readonly shared?: SharedTensors<S>;
};

/**
 * Of one linear: changes rows of its weight, f32[rows, in], the first of them number `first`, into those of the merged
 * weight.
 */
export type MergeRows = (rows: Float32Array, first: number) => void;
export type Merged = {
  readonly width: number;
  readonly rank: number;
  readonly scale: number;
  readonly tensor: (name: string) => Float32Array;
};

/** `S`: the settings that it knows. */
export type Definition<S = Settings> = {
  /** As papers write it. */
  readonly title: string;
  /** In the order in which they are stored. */
  readonly tensors: Readonly<Record<string, StoredTensor<S>>>;
  /**
   * Those that are trained; left out, all. The optimizer has one rate for B and one for all others, so either may be frozen
   * as a whole: here the others.
   */
  readonly trained?: readonly ["B"];
  /** Whether it is computed from the whole product of a linear, which is kept for the backward pass. */
  readonly keepsProduct?: true;
  /** Whether it may act in experts. */
  readonly actsInExperts?: true;
  /** Rank of an adapter whose recipe gives none. */
  readonly rank: number;
  /**
   * Keys of a recipe that not all methods have, with their schemas. One name is the same key in all methods; with `alpha`
   * the low-rank product is scaled by it and the rank.
   */
  readonly keys: v.ObjectEntries;
  /** Of these, such as stages must know, and such as an adapter that is continued must have the same. */
  readonly settings: readonly string[];
  readonly continued: readonly string[];
  /**
   * Whether its factors may begin as a part of the weight, which is taken off again: then nothing else of it depends on the
   * weight.
   */
  readonly beginsAsPart: boolean;
  /** Whether it is trained on embedding and head, too. */
  readonly trainsTables?: true;
  readonly peft: PeftFormat<S>;
  readonly merge: (of: Merged) => MergeRows;
};

/** The definition with its names as literal types. */
export const define = <const T extends Definition<never>>(of: T): T => of;

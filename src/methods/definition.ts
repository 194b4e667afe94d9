// What a PEFT method is: the tensors that an adapter has of each linear, and its keys in a recipe. How it is computed is src/engine/methods/NAME.ts.

/** The axes of a linear's tensor: `in` and `out` of its weight [out, in], and the adapter's rank there. */
export type Axes = "rank in" | "out rank" | "out" | "rank";

/** A tensor that an adapter has of each linear that it targets. Those of the low-rank product, A and B, are lora.ts's. */
export type StoredTensor = {
  readonly axes: Axes;
  /** Its values before the first step: by the recipe's `init`, or one number. */
  readonly initial: "init" | ((settings: { readonly dInitial?: number | undefined }) => number);
};

export type Definition = {
  /** As papers write it. */
  readonly title: string;
  /** In the order in which they are stored. */
  readonly tensors: Readonly<Record<string, StoredTensor>>;
  /** Those that are trained; left out, all. The optimizer knows the rate of B and that of all others: frozen are none, or all but B. */
  readonly trained?: readonly string[];
  /** Whether it is computed from the whole product of a linear, which is kept for the backward pass. */
  readonly keepsProduct?: true;
  /** Rank of an adapter whose recipe gives none. */
  readonly rank: number;
  /** Keys of a recipe that it has, of those that not all methods have. With `alpha` the low-rank product is scaled by it and the rank. */
  readonly keys: readonly string[];
  /** Whether its factors may begin as a part of the weight, which is taken off again: then nothing else of it depends on the weight. */
  readonly beginsAsPart: boolean;
  /** What an adapter_config.json says of it. */
  readonly peft: { readonly peft_type: "LORA" | "VERA"; readonly use_dora?: boolean };
};

/** The definition with its names as literal types. */
export const define = <const T extends Definition>(of: T): T => of;

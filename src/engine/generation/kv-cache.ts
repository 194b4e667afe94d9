// The keys and values that generation keeps of the tokens it has read, or what linear attention and convolutions have after
// them, so that a generated token costs one row of a pass.

import type { DType } from "../../base/dtype.ts";
import { alignUp, sum } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Operation } from "../../families/definition.ts";
import { PAGE } from "../../ops/decode.ts";
import { type Program, programOf } from "../layers/program.ts";
import { wholeModel } from "../weights/weights.ts";

/**
 * Sequences that are generated at once, and tokens that each may have. `pages`: of PAGE tokens, which the sequences share as
 * they grow; left out, as many as all of them may come to.
 */
export type CacheSizes = { readonly sequences: number; readonly capacity: number; readonly pages?: number };

/** Rows from the first of a sequence to the first of the next, as passes count them (ops/decode.ts). */
export const rowsOfSequence = ({ capacity }: Pick<CacheSizes, "capacity">): number => alignUp(capacity, PAGE);
/** Pages of a sequence that has become as long as it may, or is `tokens` long. */
export const pagesOfSequence = ({ capacity }: Pick<CacheSizes, "capacity">, tokens = capacity): number =>
  Math.ceil(tokens / PAGE);
/** Pages of all. */
export const pagesOf = (sizes: CacheSizes): number => sizes.pages ?? sizes.sequences * pagesOfSequence(sizes);

/**
 * Rows of a pass that extends a number of sequences, a row each: few different numbers, as each has launches of its own
 * (row-pass.ts).
 */
export const rowsFor = (sequences: number): number =>
  sequences > 128 ? alignUp(sequences, 128) : Math.max(8, 2 ** Math.ceil(Math.log2(sequences)));

/** What layers keep of each sequence in place of its keys: the last rows of their convolution, and the states of attention. */
export type LinearCache = {
  readonly window: Tensor; // c[sequences, taps - 1, channels]
  readonly state: Tensor | null; // f32[sequences, N, K, V] or [sequences, N, P, S]; null where a convolution is all
};

export type LayerCache = {
  /**
   * c[pages * PAGE, 2 C D], a row for each token that is kept; without columns where a layer has no keys of its own.
   */
  readonly kv: Tensor;
  readonly linear: LinearCache | null;
};

/** Of each layer of a stage. */
export type KvCache = readonly LayerCache[];

/**
 * The rows of the cache that a pass writes, i32[M], of which a sequence's begin `capacity` after those of the one before it,
 * `pages` i32[..] in which they lie, and what the pass's rows attend to: each other, or the cache (their own keys included);
 * `tiles` and `areAllTiled` as attention_decode has them.
 */
export type Cached = {
  readonly cache: KvCache;
  readonly places: Tensor;
  readonly pages: Tensor;
  readonly tiles: Tensor | null;
  readonly areAllTiled: boolean;
  readonly capacity: number;
  readonly from: "pass" | "cache";
};

/** The table of pages, as the host has it: in order, until passes say otherwise. */
export class PageTable {
  readonly #pages: Int32Array;
  #isWritten = false;

  constructor(sizes: CacheSizes) {
    const pages = pagesOf(sizes);
    this.#pages = Int32Array.from({ length: pageEntries(sizes) }, (_, i) => i % pages);
  }

  /** Brings what a pass changes, a number of entries and pages in turn, to the device. */
  update(device: Device, table: Tensor, changes: Int32Array): void {
    for (let i = 0; i < changes.length; i += 2) this.#pages[changes[i]!] = changes[i + 1]!;
    if (this.#isWritten && changes.length === 0) return;
    device.write(table, this.#pages);
    this.#isWritten = true;
  }
}

const pageEntries = (sizes: CacheSizes): number => sizes.sequences * pagesOfSequence(sizes);
export const takePages = (take: Take, sizes: CacheSizes): Tensor => take("i32", pageEntries(sizes));

type Take = (dtype: DType, ...shape: number[]) => Tensor;

export const takeCache = (take: Take, compute: DType, program: Program, sizes: CacheSizes): KvCache =>
  program.map(({ operations }) => {
    const isOwn = operations.every((of) => of.op !== "sharedKv");
    const widths = operations.map((of) => (isOwn && of.op === "attention" ? 2 * of.heads.kvHeads * of.heads.headDim : 0));
    return {
      kv: take(compute, pagesOf(sizes) * PAGE, sum(widths)),
      linear: takeLinear(take, compute, operations, sizes.sequences),
    };
  });

/** Whether layers keep something else of a sequence than keys of each token: then its tokens are read in one go. */
export const keepsStates = (spec: ModelSpec): boolean =>
  programOf(spec, wholeModel(spec)).some(({ operations }) =>
    operations.some((of) => of.op === "convolution" || of.op === "shortConvolution"),
  );

function takeLinear(take: Take, compute: DType, operations: Program[0]["operations"], sequences: number): LinearCache | null {
  const convolution = operations.find((of) => of.op === "convolution" || of.op === "shortConvolution");
  if (!convolution) return null;
  const shape = operations.map(stateShape).find((sizes) => sizes !== null);
  return {
    window: take(compute, sequences, convolution.taps - 1, convolution.channels),
    state: shape ? take("f32", sequences, ...shape) : null,
  };
}

/** Of the states of a sequence, by heads; null for an operation without them. */
function stateShape(of: Operation): readonly number[] | null {
  if (of.op === "deltaRule") return [of.heads.valueHeads, of.heads.keyDim, of.heads.valueDim];
  return of.op === "stateSpace" ? [of.heads.heads, of.heads.headDim, of.heads.stateDim] : null;
}

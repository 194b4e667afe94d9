// How products over few rows are cut (kernels/triton/fewrows.py), and what they leave in scratch meanwhile.

import { bytesOf } from "../base/dtype.ts";
import { alignUp, sizeOf } from "../base/shape.ts";
import type { Tensor } from "./device.ts";

/** Rows that are multiplied at once. */
export const MOST_ROWS = 512;
/** Rows, columns of s and columns of x in a tile of the low-rank product, and columns of x that one of its programs sums. */
export const LOW = { rows: 16, columns: 16, part: 1024 } as const;

/** Rows of the weight in a tile, tiles that keep a GPU busy, and columns that are worth a program. */
const [TILE, BUSY, LEAST] = [64, 256, 512];

/** Pieces of K that are summed apart, and columns of each: of N and K alone, so that all GPUs sum alike. */
export function fewRowsPieces(N: number, K: number): { readonly count: number; readonly columns: number } {
  const wanted = Math.min(Math.ceil(K / LEAST), Math.max(1, Math.round(BUSY / Math.ceil(N / TILE))));
  const columns = alignUp(Math.ceil(K / wanted), TILE);
  return { count: Math.ceil(K / columns), columns };
}

export type FewRowsSizes = {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  /** Columns of s. */
  readonly W: number;
  /** A weight that was taken apart at the beginning of scratch. */
  readonly dense: Pick<Tensor, "shape" | "dtype"> | null;
};

/** Where parts of the product and of s lie in scratch, and all that is needed of it. */
export function fewRowsScratch({ M: rows, K, N, W, dense }: FewRowsSizes) {
  const M = Math.min(rows, MOST_ROWS);
  const part = dense ? alignUp(sizeOf(dense.shape) * bytesOf(dense.dtype), 256) : 0;
  const low = part + alignUp(fewRowsPieces(N, K).count * M * N * 4, 256);
  return { part, low, bytes: low + Math.ceil(K / LOW.part) * M * W * 4 };
}

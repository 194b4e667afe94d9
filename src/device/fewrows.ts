// How products over few rows are cut (kernels/triton/fewrows.py), and what they leave in scratch meanwhile.

import { bytesOf, type DType } from "../base/dtype.ts";
import type { WeightFormat } from "../base/precision.ts";
import { alignUp, range, sizeOf } from "../base/shape.ts";

/** Rows that are multiplied at once. */
export const MOST_ROWS = 512;
/** Rows, columns of s and columns of x in a tile of the low-rank product, and columns of x that one of its programs sums. */
export const LOW = { rows: 16, columns: 16, part: 1024 } as const;

/** Rows of a weight in a tile, of one that is taken apart there more: its tiles' rows of x are read more often. */
const TILE = { dense: 64, int8: 128, nf4: 128, fp8: 64, apart: 64 };
/** What columns of a piece are a multiple of. */
const WHOLE = { dense: 64, int8: 128, nf4: 128, fp8: 128, apart: 64 };
/** Tiles that keep a GPU busy, and columns that are worth a program. */
const [BUSY, LEAST] = [256, 512];
/** Multiprocessors of an H200, how long two programs over codes take there at once for one, and columns that one begins in. */
const [PROCESSORS, OF_TWO, BEGINNING] = [132, 1.35, 256];

/**
 * How a product over few rows reads a weight: as it is; in codes of int8 or nf4, of which its tiles are made; in e4m3, with
 * rows that are rounded to it, too; or taken apart before.
 */
export type Reading = "dense" | "int8" | "nf4" | "fp8" | "apart";

/** The same whatever the rows. */
export function readingOf(compute: DType, format: WeightFormat, K: number): Reading {
  if (format === "dense") return "dense";
  if (compute !== "bf16" || K % (format === "nf4" ? 64 : 16) !== 0) return "apart";
  return format === "fp8" || format === "nf4" || format === "int8" ? format : "apart";
}

/** Pieces of K that are summed apart, and columns of each: of the weight alone, so that all GPUs sum alike. */
export function fewRowsPieces(N: number, K: number, reading: Reading): { readonly count: number; readonly columns: number } {
  const [tiles, most] = [Math.ceil(N / TILE[reading]), Math.ceil(K / LEAST)];
  const columnsOf = (pieces: number): number => alignUp(Math.ceil(K / pieces), WHOLE[reading]);
  const wanted = Math.min(most, Math.max(1, Math.round(BUSY / tiles)));
  const columns =
    reading === "int8" || reading === "nf4"
      ? fastest(
          range(most).map((i) => columnsOf(i + 1)),
          tiles,
          K,
        )
      : columnsOf(wanted);
  return { count: Math.ceil(K / columns), columns };
}

/** Programs over codes wait for what they take apart, not for memory: as measured for 64 rows and the shapes of a 7B. */
function fastest(columns: readonly number[], tiles: number, K: number): number {
  const time = (each: number): number => {
    const programs = Math.ceil((tiles * Math.ceil(K / each)) / PROCESSORS);
    return (Math.floor(programs / 2) * OF_TWO + (programs % 2)) * (each + BEGINNING);
  };
  return columns.reduce((best, each) => (time(each) < time(best) ? each : best));
}

/** Rows above which Hopper GPUs take codes of nf4 apart before the product, once for all tiles of rows, to the same bits. */
const [APART_FROM, VALUE] = [320, 2];

export type FewRowsSizes = {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  /** Columns of s. */
  readonly W: number;
  readonly reading: Reading;
  readonly compute: DType;
};

const aligned = (bytes: number): number => alignUp(bytes, 256);

/**
 * Where parts of the product and of s lie in scratch, and all that is needed of it. It begins with the weight that was taken
 * apart or the values of its codes, or with codes of rows, whose scales follow.
 */
export function fewRowsScratch({ M: rows, K, N, W, reading, compute }: FewRowsSizes) {
  const M = Math.min(rows, MOST_ROWS);
  const scale = reading === "fp8" ? aligned(M * K) : 0;
  const before = {
    dense: 0,
    fp8: scale + aligned(4 * M),
    int8: 0,
    nf4: M > APART_FROM ? aligned(N * K * VALUE) : 0,
    apart: aligned(sizeOf([N, K]) * bytesOf(compute)),
  };
  const part = before[reading];
  const low = part + aligned(fewRowsPieces(N, K, reading).count * M * N * 4);
  return { scale, part, low, bytes: low + Math.ceil(K / LOW.part) * M * W * 4 };
}

/** Rows of a tile of one expert: whatever it is, a row's sums are the same. */
export const expertHeight = (pairs: number, experts: number): 16 | 64 => (pairs > 16 * experts ? 64 : 16);

/** Tiles that the sorted rows of experts come to, at most. */
export const expertSlots = (pairs: number, experts: number, height = expertHeight(pairs, experts)): number =>
  Math.min(experts, pairs) + Math.floor(pairs / height);

/** Whether experts' weights are read where products over few rows need them: else all of a layer would be taken apart. */
export function readsExperts(compute: DType, format: WeightFormat, widths: readonly number[]): boolean {
  const whole = format === "nf4" ? 64 : format === "mxfp4" ? 32 : 16;
  return format === "dense" || (format !== "nf4-fp8" && compute === "bf16" && widths.every((K) => K % whole === 0));
}

/** Of the products of experts over `pairs` sorted rows: where s begins after the product in scratch, and all that is needed. */
export function fewExpertsScratch({ pairs, K, N, W }: { readonly pairs: number } & Record<"K" | "N" | "W", number>) {
  const low = aligned(pairs * N * 4);
  return { low, bytes: low + Math.ceil(K / LOW.part) * pairs * W * 4 };
}

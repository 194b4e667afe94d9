// Tiles of rows: how high they are, and which of their rows' dot products are summed in the same order.

import { range } from "../base/shape.ts";
import type { Device } from "./device.ts";

/**
 * Rows of a tile on a CPU: of products of our own (ffi/native/gemm.c), which sum an element alike wherever its row lies, as
 * many as one of their tiles has; of OpenBLAS's a multiple of the rows that its x86 kernels take at a time (12 and 16 divide
 * 48; 24 was enough on all of them). A device of either kind computes with the larger, too: stages of both have that in common.
 */
export const CPU_ROW_TILE = 8;
export const OPENBLAS_ROW_TILE = 24;
/** An adapter's rows begin at a multiple of this on every GPU: the height of the kernels' tiles. */
export const CUDA_ROW_TILE = 128;

/**
 * Places within a tile where a row's products are summed alike. OpenBLAS's kernels for Haswell and Zen have two ways, six rows
 * each in turn; its others have one (tests/cpu/cores.test.ts tries them). Our own products and GPU kernels treat all rows of a
 * tile alike.
 */
export const sameOrderPlaces = ({ kind, rowTile }: Pick<Device, "kind" | "rowTile">): readonly number[] =>
  range(rowTile).filter((place) => kind !== "cpu" || rowTile === CPU_ROW_TILE || place % 12 < 6);

/**
 * The rows of an adapter in one expert begin at a multiple of this among the sorted rows (ops/route.ts). GPU kernels take rows
 * of several adapters in one tile: an expert of 128 gets 256 of 4096 tokens, which 32 adapters may share.
 */
export const CPU_EXPERT_TILE = OPENBLAS_ROW_TILE;
export const CUDA_EXPERT_TILE = 1;

export const expertTile = ({ kind }: Pick<Device, "kind">): number => (kind === "cpu" ? CPU_EXPERT_TILE : CUDA_EXPERT_TILE);

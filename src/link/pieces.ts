// A tensor in pieces, so that one end still copies while the other has begun, and what was just written is still in a cache.

import type { Tensor } from "../device/device.ts";
import { tensorBytes } from "./link.ts";

const PIECE_BYTES = 4 * 2 ** 20;

export type Piece = { readonly at: number; readonly end: number; readonly tensor: Tensor };

/** In order; one empty piece where there is nothing. */
export function piecesOf(tensor: Tensor): readonly Piece[] {
  const bytes = tensorBytes(tensor);
  const count = Math.max(1, Math.ceil(bytes / PIECE_BYTES));
  return Array.from({ length: count }, (_, i) => {
    const [at, end] = [i * PIECE_BYTES, Math.min(bytes, (i + 1) * PIECE_BYTES)];
    return { at, end, tensor: { ptr: tensor.ptr + at, dtype: "u8", shape: [end - at] } };
  });
}

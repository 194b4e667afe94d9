// Pooled hidden states: means of rows of the normed stream, which the output head reads, and their gradient. Both are
// computed in the head's buffers, which have room for all rows of a packed batch and are free before and after the loss.

import { firstRows } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { rowsGather, rowsScatter } from "../../ops/embed.ts";
import { poolBackward, poolForward } from "../../ops/pool.ts";
import { rmsnormBackward, rmsnormForward } from "../../ops/rmsnorm.ts";
import type { HeadBuffers } from "../layers/buffers.ts";
import type { HeadWeights } from "./head.ts";

/** Rows of the stream, each once: `rows` i32[T]. `bounds` i32[P, 2] are the ranges of `rows` that are averaged. */
export type Pools = { readonly rows: Int32Array; readonly bounds: Int32Array };

/** Pooled states c[P, H], in a buffer that the next loss overwrites. */
export function pooled(device: Device, head: HeadWeights, buffers: HeadBuffers, hidden: Tensor, pools: Pools): Tensor {
  device.write(buffers.poolRows, pools.rows);
  device.write(buffers.poolBounds, pools.bounds);
  const { h, bounds } = normed(device, head, buffers, hidden, pools);
  const y = firstRows(buffers.gradH, pools.bounds.length / 2);
  poolForward(device, { x: h, bounds, y });
  return y;
}

/**
 * Adds to `gradHidden` c[M, H] the gradient of the stream that comes through the pools, whose own gradient is `dy`, c[P, H]
 * on the host. The last call of `pooled` must have been for these pools.
 */
export function addPooledGradient(
  device: Device,
  head: HeadWeights,
  buffers: HeadBuffers,
  hidden: Tensor,
  pools: Pools,
  dy: ArrayBufferView,
  gradHidden: Tensor,
): void {
  const { x, h, rstd, rows, bounds } = normed(device, head, buffers, hidden, pools);
  const given = firstRows(buffers.gradH, pools.bounds.length / 2);
  device.write(given, dy);
  poolBackward(device, { dy: given, bounds, dx: h });
  const sum = firstRows(buffers.gradH, pools.rows.length);
  rowsGather(device, { x: gradHidden, rows, y: sum });
  rmsnormBackward(device, { dy: h, x, weight: head.norm, rstd, residual: sum, dx: sum });
  rowsScatter(device, { dy: sum, rows, dx: gradHidden });
}

function normed(device: Device, head: HeadWeights, buffers: HeadBuffers, hidden: Tensor, pools: Pools) {
  const of = (t: Tensor) => firstRows(t, pools.rows.length);
  const [x, h, rstd, rows] = [of(buffers.x), of(buffers.h), of(buffers.rstd), of(buffers.poolRows)];
  rowsGather(device, { x: hidden, rows, y: x });
  rmsnormForward(device, { x, weight: head.norm, residual: null, y: h, rstd, eps: head.eps });
  return { x, h, rstd, rows, bounds: firstRows(buffers.poolBounds, pools.bounds.length / 2) };
}

// A micro-batch on the device: the tables that kernels read. One is kept for each micro-batch in flight.

import type { DType } from "../base/dtype.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import type { Presence } from "./methods/computation.ts";

/** The tables of a micro-batch on the host; what they mean is in device/kernels.ts. */
export type BatchTables = {
  readonly ids: Int32Array; // [M]
  readonly positions: Int32Array; // [M]
  readonly bounds: Int32Array; // [M, 2]
  readonly rowNumber: Int32Array; // [M]
  readonly tileAdapter: Int32Array; // [M / rowTile]
  readonly dropout: Int32Array; // [L, 4]
  readonly targetRows: Int32Array; // [T]
  readonly targetIds: Int32Array; // [T]
  readonly weights: Float32Array; // [T]
};

export type Batch = { readonly rows: number; readonly targets: number } & { readonly [K in keyof BatchTables]: Tensor } & {
  readonly loss: Tensor; // f32[T]
  readonly isCorrect: Tensor; // i32[T]
  readonly presence: Presence;
};

export type BatchSizes = {
  readonly rows: number;
  readonly targets: number;
  readonly adapters: number;
  readonly rowTile: number;
};

/** Tables for the largest micro-batch. */
export function takeBatch(
  take: (dtype: DType, ...shape: number[]) => Tensor,
  { rows, targets, adapters, rowTile }: BatchSizes,
): Batch {
  return {
    rows,
    targets,
    ids: take("i32", rows),
    positions: take("i32", rows),
    bounds: take("i32", rows, 2),
    rowNumber: take("i32", rows),
    tileAdapter: take("i32", Math.ceil(rows / rowTile)),
    dropout: take("i32", adapters, 4),
    targetRows: take("i32", targets),
    targetIds: take("i32", targets),
    weights: take("f32", targets),
    loss: take("f32", targets),
    isCorrect: take("i32", targets),
    presence: {},
  };
}

/** Uploads a micro-batch's tables into `batch`; returns them cut to its size. */
export function writeBatch(device: Device, batch: Batch, tables: BatchTables): Omit<Batch, "presence"> {
  const upload = (to: Tensor, data: Int32Array | Float32Array): Tensor => {
    const width = to.shape.length === 2 ? to.shape[1]! : 1;
    if (data.length > 0) device.write(to, data);
    return firstRows(to, data.length / width);
  };
  const targets = tables.targetRows.length;
  return {
    rows: tables.ids.length,
    targets,
    ids: upload(batch.ids, tables.ids),
    positions: upload(batch.positions, tables.positions),
    bounds: upload(batch.bounds, tables.bounds),
    rowNumber: upload(batch.rowNumber, tables.rowNumber),
    tileAdapter: upload(batch.tileAdapter, tables.tileAdapter),
    dropout: upload(batch.dropout, tables.dropout),
    targetRows: upload(batch.targetRows, tables.targetRows),
    targetIds: upload(batch.targetIds, tables.targetIds),
    weights: upload(batch.weights, tables.weights),
    loss: firstRows(batch.loss, targets),
    isCorrect: firstRows(batch.isCorrect, targets),
  };
}

// A micro-batch on the device: the tables that kernels read. One is kept for each micro-batch in flight.

import type { DType } from "../base/dtype.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { type BatchSizes, type BatchTables, eachTable, entriesOf, TABLES, type TableName } from "../schedule/micro-batch.ts";
import type { Presence } from "./methods/computation.ts";

export type Batch = { readonly rows: number; readonly targets: number } & Readonly<Record<TableName, Tensor>> & {
    readonly loss: Tensor; // f32[T]
    readonly isCorrect: Tensor; // i32[T]
    readonly presence: Presence;
  };

/** Tables for the largest micro-batch. */
export function takeBatch(take: (dtype: DType, ...shape: number[]) => Tensor, sizes: BatchSizes): Batch {
  const { rows, targets } = sizes;
  return {
    rows,
    targets,
    ...eachTable((_, table) => {
      const entries = entriesOf(table, sizes);
      return table.width === 1 ? take(table.dtype, entries) : take(table.dtype, entries, table.width);
    }),
    loss: take("f32", targets),
    isCorrect: take("i32", targets),
    presence: {},
  };
}

/** Uploads a micro-batch's tables into `batch`; returns them cut to its size. */
export function writeBatch(device: Device, batch: Batch, tables: BatchTables): Omit<Batch, "presence"> {
  const upload = (name: TableName): Tensor => {
    const data = tables[name];
    if (data.length > 0) device.write(batch[name], data);
    return firstRows(batch[name], data.length / TABLES[name].width);
  };
  const targets = tables.targetRows.length;
  return {
    rows: tables.ids.length,
    targets,
    ...eachTable(upload),
    loss: firstRows(batch.loss, targets),
    isCorrect: firstRows(batch.isCorrect, targets),
  };
}

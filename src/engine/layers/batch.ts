// A micro-batch on the device: the tables that kernels read. One is kept for each micro-batch in flight.

import type { DType } from "../../base/dtype.ts";
import { alignUp } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { firstRows } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { type Group, groupsOfModel } from "../../families/linears.ts";
import { PEFT_METHODS, type PeftMethod } from "../../methods/registry.ts";
import { type BatchSizes, type BatchTables, eachTable, entriesOf, TABLES, type TableName } from "../../schedule/micro-batch.ts";
import type { LowRows as StartsOfLowRows } from "../adapted/low-rows.ts";
import { type EmbeddingBatch, embeddingBatch, type HeadBatch, headBatch, takeTableBatch } from "../adapted/table-batch.ts";
import type { RowTablesOfPass } from "../generation/row-tables.ts";
import type { Expanding, Presence } from "../methods/computation.ts";
import { COMPUTATIONS } from "../methods/registry.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";
import type { StageSizes } from "./buffers.ts";

/**
 * The rows of s of a group: `lowAt` i32[T], where each tile begins, in units of 16 elements (ops/linear/low-rank.ts).
 * `hasGains`: of rows that find their own adapters, whether some of these have gains (engine/methods/computation.ts).
 */
export type LowRows = Omit<StartsOfLowRows, "starts"> & { readonly lowAt: Tensor; readonly hasGains?: boolean };

/** What the adapters of a pass have it compute. */
export type AdapterWork = {
  readonly presence: Presence;
  /** Of each group that some adapter of the pass targets. */
  readonly low: ReadonlyMap<Group, LowRows>;
  /** Of methods that store neither A nor B. */
  readonly expanding: ReadonlyMap<PeftMethod, Expanding>;
  /** i32[M], of a pass whose rows have an adapter each (row-pass.ts); null where tiles have. */
  readonly rowAdapter: Tensor | null;
};

export type Batch = { readonly rows: number; readonly targets: number } & Readonly<Record<TableName, Tensor>> & {
    readonly loss: Tensor; // f32[T]
    readonly isCorrect: Tensor; // i32[T]
    /** Null where no adapter of the pass changes the table, or it is on another stage. */
    readonly embedding: EmbeddingBatch | null;
    readonly head: HeadBatch | null;
    /** The same of a pass whose rows have an adapter each. */
    readonly ofTables: RowTablesOfPass | null;
  } & AdapterWork;

/** Memory of a batch's tables. */
export type BatchMemory = ReturnType<typeof takeBatch>;

/** Elements of i32: kernels take each table to begin at a multiple of 16 bytes. */
const ALIGNED = 4;
const EXPANDING = PEFT_METHODS.filter((method) => COMPUTATIONS[method].expansion);

/** Tables for the largest micro-batch. */
export function takeBatch(
  take: (dtype: DType, ...shape: number[]) => Tensor,
  spec: ModelSpec,
  sizes: BatchSizes & Pick<StageSizes, "chunk" | "low" | "slots">,
) {
  const { rows, targets, adapters, rowTile } = sizes;
  return {
    rows,
    targets,
    ...eachTable((_, table) => {
      const entries = entriesOf(table, sizes);
      return table.width === 1 ? take(table.dtype, entries) : take(table.dtype, entries, table.width);
    }),
    loss: take("f32", targets),
    isCorrect: take("i32", targets),
    lowAt: take("i32", groupsOfModel(spec).length, alignUp(Math.ceil(rows / rowTile), ALIGNED)),
    which: new Map(EXPANDING.map((method) => [method, take("i32", adapters)])),
    ofTables: takeTableBatch(take, sizes),
  };
}

/** Uploads a micro-batch's tables into `batch`; returns them cut to its size. */
export function writeBatch(device: Device, pool: AdapterPool, batch: BatchMemory, tables: BatchTables): Batch {
  const upload = (name: TableName): Tensor => {
    const data = tables[name];
    if (data.length > 0) device.write(batch[name], data);
    return firstRows(batch[name], data.length / TABLES[name].width);
  };
  const targets = tables.targetRows.length;
  const { embedding, head } = batch.ofTables;
  const uploaded = eachTable(upload);
  return {
    rows: tables.ids.length,
    targets,
    ...uploaded,
    embedding: embeddingBatch(device, pool, embedding, tables, uploaded.tileAdapter),
    head: headBatch(device, pool, head, tables),
    ofTables: null,
    loss: firstRows(batch.loss, targets),
    isCorrect: firstRows(batch.isCorrect, targets),
    ...adapterWork(device, pool, batch, tables.tileAdapter),
  };
}

function adapterWork(device: Device, pool: AdapterPool, batch: BatchMemory, tiles: Int32Array): AdapterWork {
  const low = new Map<Group, LowRows>();
  const found = [...pool.lowRows(tiles)];
  const pitch = alignUp(tiles.length, ALIGNED);
  const starts = new Int32Array(found.length * pitch);
  for (const [i, [group, { starts: of, ...rows }]] of found.entries()) {
    starts.set(of, i * pitch);
    const ptr = batch.lowAt.ptr + 4 * i * pitch;
    low.set(group, { ...rows, lowAt: { ptr, dtype: "i32", shape: [tiles.length] } });
  }
  if (starts.length > 0) device.write(batch.lowAt, starts);
  const expanding = new Map<PeftMethod, Expanding>();
  for (const [method, slots] of pool.expanding(tiles)) {
    const which = batch.which.get(method)!;
    device.write(which, slots);
    expanding.set(method, { which, table: pool.tableOf(method) });
  }
  return { presence: pool.presence(tiles), low, expanding, rowAdapter: null };
}

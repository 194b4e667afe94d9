// Rows by index: the embedding table, and the rows that have a target.

import { op } from "./op.ts";

export const embedForward = op("embed_forward", { ids: "i32 M", table: "c V H", x: "c M H" });
export const rowsGather = op("rows_gather", { x: "c M H", rows: "i32 T", y: "c T H" });
export const rowsScatter = op("rows_scatter", { dy: "c T H", rows: "i32 T", dx: "c M H" });

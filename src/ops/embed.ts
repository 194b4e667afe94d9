// Rows by index: the embedding table, and the rows that have a target.

import { I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Tensor } from "../device/device.ts";
import { isPacked, valuesOf, type Weight } from "../device/packed.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  rows_gather: { args: [P, P, P, I, I], returns: "void" },
  rows_widen: { args: [P, P, P, I, I], returns: "void" },
  rows_scatter: { args: [P, P, P, I, I], returns: "void" },
});

/** Words of 4 bytes in a row: GPU kernels copy bits, for every element type. */
const words = (t: Tensor): number => (dim(t, 1) * bytesOf(t.dtype)) / 4;

const gather = {
  cpu: (x: Tensor, rows: Tensor, y: Tensor): void => c.rows_gather(x.ptr, rows.ptr, y.ptr, dim(y, 0), dim(y, 1)),
  cuda: (gpu: Launcher, x: Tensor, rows: Tensor, y: Tensor): void => {
    const kernel = gpu.kernel("rows_gather");
    const W = words(y);
    gpu.launch(kernel, [dim(y, 0), cdiv(W, kernel.constant("BLOCK"))], { x, rows, y, W });
  },
};

/** x[m] = table[ids[m]]: ids i32[M], table c[V, H] or, on a CPU, packed in bf16, x c[M, H]. */
export const embedForward = op<{ ids: Tensor; table: Weight; x: Tensor }>(
  "embed_forward",
  { ids: "i32 M", table: "w V H", x: "c M H" },
  {
    cpu: ({ ids, table, x }) => {
      const values = valuesOf(table);
      if (values.dtype === "bf16") c.rows_widen(values.ptr, ids.ptr, x.ptr, dim(x, 0), dim(x, 1));
      else gather.cpu(values, ids, x);
    },
    cuda: ({ ids, table, x }, gpu) => {
      invariant(!isPacked(table), "a GPU holds the embedding as it computes");
      gather.cuda(gpu, table, ids, x);
    },
  },
);

/** Programs that fetch: enough requests under way for a bus, and few enough to leave the GPU to others. */
const FETCHERS = 64;

/** The same of a table in the machine's memory (Device.allocateHost), for ids that are not below zero. */
export const embedFetch = op<{ ids: Tensor; table: Tensor; x: Tensor }>(
  "embed_fetch",
  { ids: "i32 M", table: "c V H", x: "c M H" },
  {
    cpu: ({ ids, table, x }) => gather.cpu(table, ids, x),
    cuda: ({ ids, table, x }, gpu) =>
      gpu.launch(gpu.kernel("rows_fetch"), [FETCHERS, 1], { x: table, rows: ids, y: x, T: dim(x, 0), W: words(x) }),
  },
);

/** y[t] = x[rows[t]], or zeros where rows[t] is negative: rows i32[T], x c[M, H], y c[T, H]. */
export const rowsGather = op<{ x: Tensor; rows: Tensor; y: Tensor }>(
  "rows_gather",
  { x: "c M H", rows: "i32 T", y: "c T H" },
  {
    cpu: ({ x, rows, y }) => gather.cpu(x, rows, y),
    cuda: ({ x, rows, y }, gpu) => gather.cuda(gpu, x, rows, y),
  },
);

/** dx[rows[t]] = dy[t] for distinct rows, those below zero left out; other rows of dx are left as they are. */
export const rowsScatter = op<{ dy: Tensor; rows: Tensor; dx: Tensor }>(
  "rows_scatter",
  { dy: "c T H", rows: "i32 T", dx: "c M H" },
  {
    cpu: ({ dy, rows, dx }) => c.rows_scatter(dy.ptr, rows.ptr, dx.ptr, dim(dy, 0), dim(dy, 1)),
    cuda: ({ dy, rows, dx }, gpu) => {
      const kernel = gpu.kernel("rows_scatter");
      const W = words(dy);
      gpu.launch(kernel, [dim(dy, 0), cdiv(W, kernel.constant("BLOCK"))], { dy, rows, dx, W });
    },
  },
);

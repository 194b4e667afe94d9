// A frozen linear layer with the low-rank products of many adapters in the same kernel (BatchLoRA, arXiv 2312.02515).

import { base } from "../../ffi/native.ts";
import { invariant } from "../base/errors.ts";
import { rowsOfFloats } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import type { Weight } from "../device/packed.ts";
import { fp8Backward, fp8Forward, isFp8 } from "./linear/fp8.ts";
import { addBias, backwardVariant, forwardVariant, frozen, productGrid } from "./linear/frozen.ts";
import {
  A,
  ADAPTER_SPECS,
  type AdapterArgs,
  applyDropout,
  B,
  boundaries,
  columnsIn,
  columnsOf,
  DROPOUT_SPECS,
  type DropoutArgs,
  drops,
  eachSegment,
  F32,
  rowsOf,
  tablesOf,
} from "./linear/low-rank.ts";
import { dim, flag, op, strideOf } from "./op.ts";
import { denseOf } from "./packed.ts";

const WHOLE = "a linear makes its input of gate and up over fp8 alone";

/** What a linear adds for adapters. */
export type LowRank = AdapterArgs & {
  readonly s: Tensor;
  readonly scale: Tensor;
  readonly firstColumn: readonly number[];
};
/** x c[M, K], or, over fp8, gate and up c[M, 2 K] that SwiGLU makes it of. */
export type LinearInput = { readonly x: Tensor } | { readonly gateUp: Tensor };
/** dy c[M, N], or, over fp8, what SwiGLU's gradients make it of: dh c[M, N / 2], gate and up c[M, N]. */
export type OutputGradient = { readonly dy: Tensor } | { readonly dh: Tensor; readonly gateUp: Tensor };

export type LinearForward = LinearInput & {
  readonly weight: Weight;
  readonly bias: Tensor | null;
  readonly residual: Tensor | null;
  readonly y: Tensor;
  readonly lora: LowRank | null;
};
export type LinearBackward = OutputGradient & {
  readonly weight: Weight;
  readonly dx: Tensor;
  readonly lora: (AdapterArgs & DropoutArgs & { readonly ds: Tensor }) | null;
};

/**
 * y = x W^T + bias + residual + scale s B^T. x c[M, K], weight c[N, K], bias c[N] or null, residual c[M, N] (may be y) or
 * null, s c[E], y c[M, N]. With `lora` null only the frozen product. A packed weight (packed.ts) is taken
 * apart to c first; fp8 is multiplied as it is, with each row of x rounded to e4m3 at its own scale.
 */
export const linearForward = op<LinearForward>(
  "linear_forward",
  {
    x: "c M K",
    gateUp: "c M 2K",
    weight: "w N K",
    bias: "c N",
    residual: "c M N",
    y: "c M N",
    s: "c E",
    scale: "f32 L G",
    ...ADAPTER_SPECS,
  },
  {
    cpu: (args, host) => {
      invariant("x" in args, WHOLE);
      const { x, weight, bias, residual, y, lora } = args;
      if (residual && residual.ptr !== y.ptr) base.native_copy(y.ptr, residual.ptr, dim(y, 0) * dim(y, 1) * F32);
      if (bias) addBias(y, bias, residual !== null);
      frozen(host, x, weight, true, y, residual || bias ? 1 : 0);
      if (!lora) return;
      const scales = rowsOfFloats(lora.scale);
      eachSegment(host, lora, dim(x, 0), ({ row, rows, adapter }, targets) => {
        for (const { g, rank, low, matrix } of targets) {
          const [first, columns] = columnsIn(lora.firstColumn, g);
          const [up, to] = [{ ptr: matrix(B), ld: columns }, columnsOf(rowsOf(y, row), first)];
          host.product([rows, columns, rank], low(lora.s), false, up, false, to, scales(adapter)[g]!, 1);
        }
      });
    },
    cuda: (args, gpu) => {
      const { weight, bias, residual, y, lora } = args;
      if (isFp8(weight)) return fp8Forward(gpu, { ...args, weight });
      invariant("x" in args, WHOLE);
      const { x } = args;
      const w = denseOf(gpu, weight);
      const [M, K, N] = [dim(x, 0), dim(x, 1), dim(w, 0)];
      const options = { BIAS: flag(bias), RESIDUAL: flag(residual) };
      const bounds = boundaries(lora?.firstColumn ?? [0, N]);
      const kernel = forwardVariant(gpu, "linear_forward", lora, options, bounds, N);
      gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, N), {
        ...{ x, w, y, bias, residual, M, N, K, ...bounds },
        ...{ s: lora?.s ?? null, scale: lora?.scale ?? null, scale_stride: lora ? strideOf(lora.scale) : 0, ...tablesOf(lora) },
      });
    },
  },
);

/**
 * dx = dy W + drop'(ds A): dy c[M, N], weight c[N, K] or packed, ds c[E], dx c[M, K]; drop' applies the
 * forward's mask. With fp8 it is dy times the weight's scales, row by row, that is rounded to e4m3.
 */
export const linearBackward = op<LinearBackward>(
  "linear_backward",
  {
    dy: "c M N",
    gateUp: "c M N",
    weight: "w N K",
    dx: "c M K",
    ds: "c E",
    ...ADAPTER_SPECS,
    ...DROPOUT_SPECS,
  },
  {
    cpu: (args, host) => {
      invariant("dy" in args, WHOLE);
      const { dy, weight, dx, lora } = args;
      frozen(host, dy, weight, false, dx, 0);
      if (!lora) return;
      const width = dim(dx, 1);
      eachSegment(host, lora, dim(dx, 0), (segment, targets) => {
        const drop = drops(lora, segment.adapter);
        const to = rowsOf(dx, segment.row);
        const sum = drop ? { ptr: host.scratch(segment.rows * width * F32), ld: width } : to;
        for (const [i, { rank, low, matrix }] of targets.entries()) {
          const beta = drop && i === 0 ? 0 : 1;
          host.product([segment.rows, width, rank], low(lora.ds), false, { ptr: matrix(A), ld: width }, false, sum, 1, beta);
        }
        if (drop) applyDropout(lora, segment, sum, to, true);
      });
    },
    cuda: (args, gpu) => {
      const { weight, dx, lora } = args;
      if (isFp8(weight)) return fp8Backward(gpu, { ...args, weight });
      invariant("dy" in args, WHOLE);
      const { dy } = args;
      const w = denseOf(gpu, weight);
      const [M, N, K] = [dim(dy, 0), dim(dy, 1), dim(w, 1)];
      const kernel = backwardVariant(gpu, "linear_backward", lora);
      gpu.launch(kernel, productGrid(gpu, kernel.constant("BM"), kernel.constant("BN"), M, K), {
        ...{ dy, w, dx, M, N, K, ds: lora?.ds ?? null, ...tablesOf(lora) },
        ...{ row_number: lora?.rowNumber ?? null, dropout: lora?.dropout ?? null, module: lora?.module ?? 0 },
      });
    },
  },
);

// The linear layers on the cpu: frozen products over all rows at once, low-rank products adapter by adapter.
//
// An adapter's products have the same sizes whatever else is in the pass (its own rows, its true rank), so the same sums are
// done. For the frozen product see ffi/native/product.c; where OpenBLAS may take its path for small matrices, rows are
// multiplied tile by tile, so that the path does not depend on how many there are.

import { alignUp, range } from "../../base/shape.ts";
import { paddedWidth } from "../../methods/layout.ts";
import type { Tensor } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import { isPacked, type Weight } from "../packed.ts";
import { addressRows, dim, floatRows, floats, type Host, intRows, ints, type Matrix, strideOf, unsigned } from "./host.ts";
import { expandRows, packedProduct, type Scratch, widestPiece } from "./packed.ts";

/** A multiple of the rows that OpenBLAS's x86 kernels take at a time (12 and 16 divide 48; 24 was enough on all of them). */
export const ROW_TILE = 24;
/** OpenBLAS 0.3.34 has another path below 100^3 multiply-adds on AVX-512. */
const SMALL_PRODUCT = 1e6;

/** Columns of the narrowest piece that ffi/native/product.c cuts n columns into. */
function narrowestPiece(host: Host, n: number): number {
  const widest = widestPiece(host.cores);
  const columns = alignUp(Math.ceil(n / (2 * Math.ceil(n / (2 * widest)))), 16);
  return Math.min(n, n % columns || columns);
}

const F32 = 4;
const rowsOf = (t: Tensor, row = 0): Matrix => ({ ptr: t.ptr + row * dim(t, 1) * F32, ld: dim(t, 1) });
const columnsOf = (m: Matrix, column: number): Matrix => ({ ptr: m.ptr + column * F32, ld: m.ld });

/** y[M, N] = x op(w) + beta y, the same sums for a row whatever M (a multiple of ROW_TILE) is. */
function frozen(host: Host, scratch: Scratch, x: Tensor, w: Weight, transposed: boolean, y: Tensor, beta: number): void {
  const [m, k, n] = [dim(x, 0), dim(x, 1), dim(y, 1)];
  const step = ROW_TILE * narrowestPiece(host, n) * k <= SMALL_PRODUCT ? ROW_TILE : m;
  for (let row = 0; row < m; row += step) {
    const [size, from, to] = [[Math.min(step, m - row), n, k] as const, rowsOf(x, row), rowsOf(y, row)];
    if (isPacked(w)) packedProduct(host, scratch, size, from, w, transposed, to, beta);
    else host.product(size, from, false, rowsOf(w), transposed, to, 1, beta);
  }
}

type Segment = { readonly row: number; readonly rows: number; readonly adapter: number };

/** Runs of tiles with one adapter. */
function segments(tileAdapter: Tensor, rows: number): Segment[] {
  const tiles = ints(tileAdapter).subarray(0, Math.ceil(rows / ROW_TILE));
  const found: Segment[] = [];
  for (let tile = 0; tile < tiles.length; ) {
    const adapter = tiles[tile]!;
    const first = tile;
    while (tile < tiles.length && tiles[tile] === adapter) tile++;
    if (adapter >= 0) found.push({ row: first * ROW_TILE, rows: Math.min(tile * ROW_TILE, rows) - first * ROW_TILE, adapter });
  }
  return found;
}

type Masked = { readonly rowNumber: Tensor; readonly dropout: Tensor; readonly module: number };

/** Applies an adapter's mask to its rows of x: into `to`, or added to it. */
function applyDropout(host: Host, args: Masked, { row, rows, adapter }: Segment, x: Matrix, to: Matrix, add: boolean): void {
  const [seed, step, threshold] = unsigned(args.dropout).subarray(adapter * 4);
  const keepScale = floats(args.dropout)[adapter * 4 + 3]!;
  const numbers = args.rowNumber.ptr + row * 4;
  host.kernels.dropout(x.ptr, to.ptr, numbers, rows, x.ld, seed!, step!, args.module, threshold!, keepScale, add ? 1 : 0);
}

const drops = (args: Masked, adapter: number): boolean => unsigned(args.dropout)[adapter * 4 + 2] !== 0;

/** An adapter's rows of x under its mask. */
function masked(host: Host, scratch: Scratch, args: Masked & { readonly x: Tensor }, segment: Segment): Matrix {
  const x = rowsOf(args.x, segment.row);
  if (!drops(args, segment.adapter)) return x;
  const dropped = { ptr: scratch(segment.rows * x.ld * F32), ld: x.ld };
  applyDropout(host, args, segment, x, dropped, false);
  return dropped;
}

/** A linear that an adapter of a segment targets, where it is in the segment's rows of s, and its matrices. */
type Target = { readonly g: number; readonly rank: number; readonly low: (s: Tensor) => Matrix; readonly matrix: (which: number) => number };
/** Places of a linear's addresses in `factors`. */
const [A, B, A_GRADIENT, B_GRADIENT] = [0, 1, 2, 3];

type Adapters = Pick<Kernels["lora_down"], "tileAdapter" | "lowAt" | "factors" | "ranks">;

/** Calls `each` for the rows of each adapter with the linears that it targets, where there are any. */
function eachSegment(args: Adapters, rows: number, each: (segment: Segment, targets: readonly Target[]) => void): void {
  const linears = dim(args.ranks, 1);
  const [ranks, stride, starts, addresses] = [intRows(args.ranks), strideOf(args.ranks), ints(args.lowAt), addressRows(args.factors)];
  for (const segment of segments(args.tileAdapter, rows)) {
    const { adapter, row } = segment;
    const own = [...ranks.subarray(adapter * stride, adapter * stride + linears)];
    const ld = paddedWidth(own);
    const first = starts[row / ROW_TILE]! * 16;
    const targets = own.flatMap((rank, g): Target[] => {
      if (rank === 0) return [];
      const column = first + paddedWidth(own.slice(0, g));
      return [
        { g, rank, low: (s) => ({ ptr: s.ptr + column * F32, ld }), matrix: (which) => addresses(adapter, g, which) },
      ];
    });
    if (targets.length > 0) each(segment, targets);
  }
}

export function linearKernels(host: Host, scratch: Scratch) {
  return {
    lora_down(args: Kernels["lora_down"]): void {
      const { x, s } = args;
      const width = dim(x, 1);
      eachSegment(args, dim(x, 0), (segment, targets) => {
        const input = masked(host, scratch, args, segment); // once for all linears of the group
        for (const { rank, low, matrix } of targets)
          host.product([segment.rows, rank, width], input, false, { ptr: matrix(A), ld: width }, true, low(s));
      });
    },

    linear_forward({ x, weight, bias, residual, y, lora }: Kernels["linear_forward"]): void {
      if (residual && residual.ptr !== y.ptr) host.kernels.native_copy(y.ptr, residual.ptr, dim(y, 0) * dim(y, 1) * F32);
      if (bias) addBias(y, bias, residual !== null);
      frozen(host, scratch, x, weight, true, y, residual || bias ? 1 : 0);
      if (!lora) return;
      const [scales, stride] = [floatRows(lora.scale), strideOf(lora.scale)];
      eachSegment(lora, dim(x, 0), ({ row, rows, adapter }, targets) => {
        for (const { g, rank, low, matrix } of targets) {
          const [first, columns] = columnsIn(lora.firstColumn, g);
          const to = columnsOf(rowsOf(y, row), first);
          const scale = scales[adapter * stride + g]!;
          host.product([rows, columns, rank], low(lora.s), false, { ptr: matrix(B), ld: columns }, false, to, scale, 1);
        }
      });
    },

    lora_up_grad(args: Kernels["lora_up_grad"]): void {
      const { dy, s, ds } = args;
      const [scales, stride] = [floatRows(args.scale), strideOf(args.scale)];
      eachSegment(args, dim(dy, 0), ({ row, rows, adapter }, targets) => {
        for (const { g, rank, low, matrix } of targets) {
          const [first, columns] = columnsIn(args.firstColumn, g);
          const scale = scales[adapter * stride + g]!;
          const dyRows = columnsOf(rowsOf(dy, row), first);
          host.product([rows, rank, columns], dyRows, false, { ptr: matrix(B), ld: columns }, true, low(ds), scale);
          const gradient = { ptr: matrix(B_GRADIENT), ld: columns };
          host.product([rank, columns, rows], low(s), true, dyRows, false, gradient, scale, 1);
        }
      });
    },

    linear_backward({ dy, weight, dx, lora }: Kernels["linear_backward"]): void {
      frozen(host, scratch, dy, weight, false, dx, 0);
      if (!lora) return;
      const width = dim(dx, 1);
      eachSegment(lora, dim(dx, 0), (segment, targets) => {
        const drop = drops(lora, segment.adapter);
        const to = rowsOf(dx, segment.row);
        const sum = drop ? { ptr: scratch(segment.rows * width * F32), ld: width } : to;
        for (const [i, { rank, low, matrix }] of targets.entries()) {
          const beta = drop && i === 0 ? 0 : 1;
          host.product([segment.rows, width, rank], low(lora.ds), false, { ptr: matrix(A), ld: width }, false, sum, 1, beta);
        }
        if (drop) applyDropout(host, lora, segment, sum, to, true);
      });
    },

    lora_down_grad(args: Kernels["lora_down_grad"]): void {
      const { x, ds } = args;
      const width = dim(x, 1);
      eachSegment(args, dim(x, 0), (segment, targets) => {
        const input = masked(host, scratch, args, segment);
        for (const { rank, low, matrix } of targets) {
          const gradient = { ptr: matrix(A_GRADIENT), ld: width };
          host.product([rank, width, segment.rows], low(ds), true, input, false, gradient, 1, 1);
        }
      });
    },
  };
}

/** Where a linear of a group begins in its output, and how many columns it has. */
const columnsIn = (firstColumn: readonly number[], g: number): readonly [first: number, columns: number] => [
  firstColumn[g]!,
  firstColumn[g + 1]! - firstColumn[g]!,
];

/** VeRA's factors and the gradients of its vectors (src/engine/methods/vera.ts), a linear of an adapter at a time. */
export function veraKernels({ kernels: c }: Host) {
  const each = (args: Kernels["vera_expand"], isGradient: boolean, apply: typeof c.vera_expand): void => {
    const { side, firstColumn, which, projection } = args;
    const [factors, vectors] = [addressRows(args.factors), addressRows(args.vectors)];
    const [ranks, stride, isB] = [intRows(args.ranks), strideOf(args.ranks), side === "b"];
    for (const [slot, is] of ints(which).entries()) {
      const [keyA, keyB, width] = ints(projection).subarray(slot * 5);
      const [boundA, boundB] = floats(projection).subarray(slot * 5 + 3);
      for (let g = 0; g < dim(args.ranks, 1); g++) {
        const rank = ranks[slot * stride + g]!;
        if (is === 0 || rank === 0) continue;
        const factor = factors(slot, g, isGradient ? (isB ? B_GRADIENT : A_GRADIENT) : isB ? B : A);
        const vector = vectors(slot, g, (isB ? 2 : 0) + Number(isGradient));
        const [key, bound] = isB ? [keyB!, boundB!] : [keyA!, boundA!];
        const columns = isB ? columnsIn(firstColumn, g)[1] : args.width;
        apply(factor, vector, rank, columns, isB ? rank : width!, Number(isB), key >>> 0, bound);
      }
    }
  };
  return {
    vera_expand: (args: Kernels["vera_expand"]): void => each(args, false, c.vera_expand),
    vera_reduce: (args: Kernels["vera_reduce"]): void => each(args, true, c.vera_reduce),
  };
}

/** Places of a DoRA's addresses in `vectors`. */
const [LENGTHS, LENGTHS_GRADIENT, GAIN, INVERSE] = [0, 1, 2, 3];

/** DoRA's part of a linear layer (src/engine/methods/dora.ts). */
export function doraKernels(host: Host, scratch: Scratch) {
  const c = host.kernels;
  const isIn = (decomposed: Tensor) => {
    const [values, stride] = [intRows(decomposed), strideOf(decomposed)];
    return (slot: number) => values[slot * stride] === 1;
  };
  return {
    dora_norm(args: Kernels["dora_norm"]): void {
      const { weight, firstColumn, stale } = args;
      const [width, linears] = [weight.shape[1]!, dim(args.ranks, 1)];
      const [factors, vectors] = [addressRows(args.factors), addressRows(args.vectors)];
      const [ranks, scales] = [intRows(args.ranks), floatRows(args.scale)];
      for (const [slot, is] of ints(stale).entries())
        for (let g = 0; g < linears; g++) {
          const rank = ranks[slot * strideOf(args.ranks) + g]!;
          if (is === 0 || rank === 0) continue;
          const [first, count] = columnsIn(firstColumn, g);
          const [a, b] = [factors(slot, g, A), factors(slot, g, B)];
          const factor = scales[slot * strideOf(args.scale) + g]!;
          const step = isPacked(weight) ? widestPiece(host.cores) : count; // rows are independent of each other
          for (let row = 0; row < count; row += step) {
            const rows = Math.min(step, count - row);
            const w = isPacked(weight)
              ? expandRows(host, scratch, weight, first + row, rows)
              : rowsOf(weight, first + row).ptr;
            const at = (which: number) => vectors(slot, g, which) + row * F32;
            const own = [at(LENGTHS), at(GAIN), at(INVERSE)] as const;
            c.dora_norm(w, a, b + row * F32, rows, width, rank, count, factor, ...own, is === 2 ? 1 : 0);
          }
        }
    },

    dora_forward({ z, bias, residual, vectors, decomposed, y, tileAdapter }: Kernels["dora_forward"]): void {
      const [width, address, isOwn] = [dim(y, 1), addressRows(vectors), isIn(decomposed)];
      for (const { row, rows, adapter } of segments(tileAdapter, dim(y, 0))) {
        if (!isOwn(adapter)) continue;
        const more = residual && rowsOf(residual, row).ptr;
        const gain = address(adapter, 0, GAIN);
        c.dora_forward(rowsOf(z, row).ptr, gain, bias?.ptr ?? null, more, rowsOf(y, row).ptr, rows, width);
      }
    },

    dora_backward({ dy, z, vectors, decomposed, tileAdapter }: Kernels["dora_backward"]): void {
      const [rows, width] = [dim(dy, 0), dim(dy, 1)];
      const [address, isOwn] = [addressRows(vectors), isIn(decomposed)];
      const others = new Set(range(Math.ceil(rows / ROW_TILE)));
      for (const segment of segments(tileAdapter, rows)) {
        const { row, adapter } = segment;
        if (!isOwn(adapter)) continue;
        for (let tile = row / ROW_TILE; tile * ROW_TILE < row + segment.rows; tile++) others.delete(tile);
        const at = (which: number) => address(adapter, 0, which);
        const own = [at(GAIN), at(INVERSE), at(LENGTHS_GRADIENT)] as const;
        c.dora_backward(rowsOf(dy, row).ptr, rowsOf(z, row).ptr, ...own, segment.rows, width);
      }
      for (const tile of others) {
        const count = Math.min(ROW_TILE, rows - tile * ROW_TILE);
        c.native_copy(rowsOf(z, tile * ROW_TILE).ptr, rowsOf(dy, tile * ROW_TILE).ptr, count * width * F32);
      }
    },
  };
}

function addBias(y: Tensor, bias: Tensor, keep: boolean): void {
  const values = floats(bias);
  const out = floats(y);
  const width = values.length;
  for (let m = 0; m < dim(y, 0); m++) {
    if (!keep) out.set(values, m * width);
    else for (let n = 0; n < width; n++) out[m * width + n]! += values[n]!;
  }
}

// The linear layers on the cpu: frozen products over all rows at once, low-rank products adapter by adapter.
//
// An adapter's products have the same sizes whatever else is in the pass (its own rows, its true rank), so the same sums are
// done. For the frozen product see ffi/native/product.c; where OpenBLAS may take its path for small matrices, rows are
// multiplied tile by tile, so that the path does not depend on how many there are.

import { alignUp, range } from "../../base/shape.ts";
import { MOST_RANK } from "../../methods/layout.ts";
import type { Tensor } from "../device.ts";
import type { Kernels } from "../kernels.ts";
import { isPacked, type Weight } from "../packed.ts";
import { dim, floats, type Host, ints, type Matrix, unsigned } from "./host.ts";
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

/** The part of a stacked tensor [L, rows, columns] that belongs to `adapter`, from row `row` of it. */
function partOf(t: Tensor, adapter: number, row: number): Matrix {
  const columns = dim(t, 2);
  return { ptr: t.ptr + (adapter * (t.stride ?? dim(t, 1) * columns) + row * columns) * F32, ld: columns };
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

export function linearKernels(host: Host, scratch: Scratch) {
  const clear = (t: Tensor) => host.kernels.native_zero(t.ptr, dim(t, 0) * dim(t, 1) * F32);

  /** Calls `each` for every (rows of an adapter, linear that it targets). */
  function eachTarget(
    args: { readonly tileAdapter: Tensor; readonly ranks: Tensor },
    rows: number,
    each: (segment: Segment, linear: number, rank: number) => void,
  ): void {
    const linears = dim(args.ranks, 1);
    const ranks = ints(args.ranks);
    for (const segment of segments(args.tileAdapter, rows))
      for (let g = 0; g < linears; g++) {
        const rank = ranks[segment.adapter * linears + g]!;
        if (rank > 0) each(segment, g, rank);
      }
  }

  return {
    lora_down(args: Kernels["lora_down"]): void {
      const { x, a, s } = args;
      const padded = dim(s, 1) / dim(args.ranks, 1);
      clear(s);
      let current: Segment | null = null;
      let input = rowsOf(x);
      eachTarget(args, dim(x, 0), (segment, g, rank) => {
        if (segment !== current) input = masked(host, scratch, args, segment); // once for all linears of the group
        current = segment;
        const to = columnsOf(rowsOf(s, segment.row), g * padded);
        host.product([segment.rows, rank, dim(x, 1)], input, false, partOf(a, segment.adapter, g * padded), true, to);
      });
    },

    linear_forward({ x, weight, bias, residual, y, lora }: Kernels["linear_forward"]): void {
      if (residual && residual.ptr !== y.ptr) host.kernels.native_copy(y.ptr, residual.ptr, dim(y, 0) * dim(y, 1) * F32);
      if (bias) addBias(y, bias, residual !== null);
      frozen(host, scratch, x, weight, true, y, residual || bias ? 1 : 0);
      if (!lora) return;
      const scales = floats(lora.scale);
      const linears = dim(lora.ranks, 1);
      eachTarget(lora, dim(x, 0), (segment, g, rank) => {
        const first = lora.firstColumn[g]!;
        const columns = lora.firstColumn[g + 1]! - first;
        const s = columnsOf(rowsOf(lora.s, segment.row), (g * dim(lora.s, 1)) / linears);
        const to = columnsOf(rowsOf(y, segment.row), first);
        const scale = scales[segment.adapter * linears + g]!;
        host.product([segment.rows, columns, rank], s, false, partOf(lora.b, segment.adapter, first), true, to, scale, 1);
      });
    },

    lora_up_grad(args: Kernels["lora_up_grad"]): void {
      const { dy, s, b, ds, db } = args;
      const linears = dim(args.ranks, 1);
      const padded = dim(s, 1) / linears;
      const scales = floats(args.scale);
      clear(ds);
      eachTarget(args, dim(dy, 0), (segment, g, rank) => {
        const first = args.firstColumn[g]!;
        const columns = args.firstColumn[g + 1]! - first;
        const scale = scales[segment.adapter * linears + g]!;
        const dyRows = columnsOf(rowsOf(dy, segment.row), first);
        const sRows = columnsOf(rowsOf(s, segment.row), g * padded);
        const dsRows = columnsOf(rowsOf(ds, segment.row), g * padded);
        const up = partOf(b, segment.adapter, first);
        host.product([segment.rows, rank, columns], dyRows, false, up, false, dsRows, scale);
        const upGrad = partOf(db, segment.adapter, first);
        host.product([columns, rank, segment.rows], dyRows, true, sRows, false, upGrad, scale, 1);
      });
    },

    linear_backward({ dy, weight, dx, lora }: Kernels["linear_backward"]): void {
      frozen(host, scratch, dy, weight, false, dx, 0);
      if (!lora) return;
      const width = dim(dx, 1);
      const padded = dim(lora.ds, 1) / dim(lora.ranks, 1);
      for (const segment of segments(lora.tileAdapter, dim(dx, 0))) {
        const drop = drops(lora, segment.adapter);
        const to = rowsOf(dx, segment.row);
        const sum = drop ? { ptr: scratch(segment.rows * width * F32), ld: width } : to;
        let beta = drop ? 0 : 1;
        const ranks = ints(lora.ranks).subarray(segment.adapter * dim(lora.ranks, 1));
        for (let g = 0; g < dim(lora.ranks, 1); g++) {
          if (ranks[g] === 0) continue;
          const ds = columnsOf(rowsOf(lora.ds, segment.row), g * padded);
          const down = partOf(lora.a, segment.adapter, g * padded);
          host.product([segment.rows, width, ranks[g]!], ds, false, down, false, sum, 1, beta);
          beta = 1;
        }
        if (drop && beta === 1) applyDropout(host, lora, segment, sum, to, true);
      }
    },

    lora_down_grad(args: Kernels["lora_down_grad"]): void {
      const { x, ds, da } = args;
      const padded = dim(ds, 1) / dim(args.ranks, 1);
      let current: Segment | null = null;
      let input = rowsOf(x);
      eachTarget(args, dim(x, 0), (segment, g, rank) => {
        if (segment !== current) input = masked(host, scratch, args, segment);
        current = segment;
        const dsRows = columnsOf(rowsOf(ds, segment.row), g * padded);
        host.product(
          [rank, dim(x, 1), segment.rows],
          dsRows,
          true,
          input,
          false,
          partOf(da, segment.adapter, g * padded),
          1,
          1,
        );
      });
    },
  };
}

/** VeRA's factors and the gradients of its vectors (src/engine/methods/vera.ts), a linear of an adapter at a time. */
export function veraKernels({ kernels: c }: Host) {
  const each = (of: Tensor, args: Kernels["vera_expand"] | Kernels["vera_reduce"], apply: typeof c.vera_expand): void => {
    const { side, vector, ranks, firstColumn, which, projection } = args;
    const linears = dim(ranks, 1);
    const [padded, ld] = [dim(of, 1) / linears, dim(of, 2)];
    for (const [slot, is] of ints(which).entries()) {
      const [keyA, keyB, width] = ints(projection).subarray(slot * 5);
      const [boundA, boundB] = floats(projection).subarray(slot * 5 + 3);
      for (let g = 0; g < linears; g++) {
        const rank = ints(ranks)[slot * linears + g]!;
        if (is === 0 || rank === 0) continue;
        const first = side === "a" ? g * padded : firstColumn[g]!;
        const sizes =
          side === "a" ? ([rank, ld, ld, width!] as const) : ([firstColumn[g + 1]! - first, rank, ld, rank] as const);
        const [key, bound] = side === "a" ? [keyA!, boundA!] : [keyB!, boundB!];
        const at = side === "a" ? g * MOST_RANK : first;
        const from = vector.ptr + (slot * (vector.stride ?? dim(vector, 1)) + at) * F32;
        apply(partOf(of, slot, first).ptr, from, ...sizes, key >>> 0, bound);
      }
    }
  };
  return {
    vera_expand: (args: Kernels["vera_expand"]): void => each(args.factor, args, c.vera_expand),
    vera_reduce: (args: Kernels["vera_reduce"]): void => each(args.grad, args, c.vera_reduce),
  };
}

/** DoRA's part of a linear layer (src/engine/methods/dora.ts). */
export function doraKernels(host: Host, scratch: Scratch) {
  const c = host.kernels;
  const rowOf = (t: Tensor, adapter: number): number => t.ptr + adapter * (t.stride ?? dim(t, 1)) * F32;
  return {
    dora_norm({ weight, a, b, scale, ranks, firstColumn, m, gain, inverse, stale }: Kernels["dora_norm"]): void {
      const [width, linears] = [weight.shape[1]!, dim(ranks, 1)];
      for (const [slot, is] of ints(stale).entries())
        for (let g = 0; g < linears; g++) {
          const rank = ints(ranks)[slot * linears + g]!;
          if (is === 0 || rank === 0) continue;
          const [first, down] = [firstColumn[g]!, partOf(a, slot, (g * dim(a, 1)) / linears)];
          const up = partOf(b, slot, first);
          const [lengths, gains, inverses] = [m, gain, inverse].map((of) => rowOf(of, slot) + first * F32);
          const factor = floats(scale)[slot * linears + g]!;
          const count = firstColumn[g + 1]! - first;
          const step = isPacked(weight) ? widestPiece(host.cores) : count; // rows are independent of each other
          for (let row = 0; row < count; row += step) {
            const rows = [Math.min(step, count - row), width, rank, up.ld] as const;
            const w = isPacked(weight)
              ? expandRows(host, scratch, weight, first + row, rows[0])
              : rowsOf(weight, first + row).ptr;
            const [length, gained, inverted] = [lengths!, gains!, inverses!].map((of) => of + row * F32);
            const begins = is === 2 ? 1 : 0;
            c.dora_norm(w, down.ptr, up.ptr + row * up.ld * F32, ...rows, factor, length!, gained!, inverted!, begins);
          }
        }
    },

    dora_forward({ z, bias, residual, gain, decomposed, y, tileAdapter }: Kernels["dora_forward"]): void {
      const width = dim(y, 1);
      for (const { row, rows, adapter } of segments(tileAdapter, dim(y, 0))) {
        if (ints(decomposed)[adapter] !== 1) continue;
        const more = residual && rowsOf(residual, row).ptr;
        c.dora_forward(rowsOf(z, row).ptr, rowOf(gain, adapter), bias?.ptr ?? null, more, rowsOf(y, row).ptr, rows, width);
      }
    },

    dora_backward({ dy, z, gain, inverse, decomposed, dm, tileAdapter }: Kernels["dora_backward"]): void {
      const [rows, width] = [dim(dy, 0), dim(dy, 1)];
      const others = new Set(range(Math.ceil(rows / ROW_TILE)));
      for (const segment of segments(tileAdapter, rows)) {
        const { row, adapter } = segment;
        if (ints(decomposed)[adapter] !== 1) continue;
        for (let tile = row / ROW_TILE; tile * ROW_TILE < row + segment.rows; tile++) others.delete(tile);
        const own = [rowOf(gain, adapter), rowOf(inverse, adapter), rowOf(dm, adapter)] as const;
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

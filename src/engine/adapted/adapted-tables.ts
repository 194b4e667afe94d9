// What adapters compute of the embedding and of the output head, forward and backward.

import { firstRows, rowsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Weight } from "../../device/packed.ts";
import { type LowRank, linearBackward } from "../../ops/linear.ts";
import { loraDown, loraDownGrad, loraUpGrad } from "../../ops/lora.ts";
import { columnsPut, columnsTake, rowsSum, tableForward } from "../../ops/tables.ts";
import type { HeadBuffers } from "../layers/buffers.ts";
import type { EmbeddingBatch, HeadBatch, TargetTiles } from "./table-batch.ts";

/** x = the embedding with what the adapters change of it; s = B[id] of the products is kept. */
export function embedAdapted(device: Device, of: EmbeddingBatch, ids: Tensor, x: Tensor, s: Tensor): void {
  const { site, tileAdapter, lowAt, tokenRow, elements } = of;
  const { factors, ranks, scale } = site;
  tableForward(device, { x, ids, tokenRow, scale, s: firstRows(s, elements), tileAdapter, lowAt, factors, ranks });
}

/** Adds to the gradients of the embedding's tensors; `dx` is the gradient of its rows, `ds` memory of s's size. */
export function embeddingGradient(device: Device, of: EmbeddingBatch, dx: Tensor, s: Tensor, ds: Tensor): void {
  const { site, tileAdapter, lowAt, elements, span, products, rows } = of;
  const { factors, ranks, scale, firstColumn } = site;
  if (elements > 0) {
    const low = { s: firstRows(s, elements), ds: firstRows(ds, elements) };
    loraUpGrad(device, { dy: dx, ...low, span, tileAdapter, lowAt, factors, ranks, scale, firstColumn });
    rowsSum(device, { from: low.ds, ...products, factors, ranks, width: 0 });
  }
  const [M, H] = dx.shape as [number, number];
  rowsSum(device, { from: { ...dx, shape: [M * H] }, ...rows, factors, ranks, width: H });
}

/** The adapters on some tiles of targets, of which `h` c[T, H] is the head's input. */
export class AdaptedHead {
  readonly #tiles: TargetTiles;
  readonly #s: Tensor;
  readonly #ds: Tensor;
  readonly #rows: { readonly rowNumber: Tensor; readonly dropout: Tensor };

  /** `first`: their first tile; `isChunk`: they are a chunk, else one tile. */
  constructor(
    private readonly device: Device,
    private readonly of: HeadBatch,
    buffers: HeadBuffers,
    private readonly h: Tensor,
    private readonly first: number,
    isChunk: boolean,
  ) {
    const count = h.shape[0]! / device.rowTile;
    this.#tiles = isChunk ? of.chunkAt(first, count) : of.tileAt(first);
    const elements = this.#elements(count);
    [this.#s, this.#ds] = [firstRows(buffers.s, elements), firstRows(buffers.ds, elements)];
    this.#rows = { rowNumber: rowsFrom(of.numbers, first * device.rowTile, h.shape[0]!), dropout: of.dropout };
  }

  #elements(count: number): number {
    const { tiles } = this.of;
    let columns = 0;
    for (let i = 0; i < count; i++) columns += tiles[this.first + i]!.width;
    return columns * this.device.rowTile;
  }

  /** s = A drop(h), or the logits of trained tokens. */
  down(): void {
    const { site, span } = this.of;
    const { factors, ranks, module } = site;
    loraDown(this.device, { x: this.h, s: this.#s, span, factors, ranks, module, ...this.#tiles, ...this.#rows, byTile: true });
  }

  /** What the head's product adds; null where no adapter has one. */
  get product(): LowRank | null {
    const { site, upSpan } = this.of;
    const { factors, upRanks: ranks, scale, firstColumn } = site;
    return upSpan && { s: this.#s, span: upSpan, factors, ranks, scale, firstColumn, ...this.#tiles, byTile: true };
  }

  put(logits: Tensor): void {
    if (this.of.mostTokens > 0) columnsPut(this.device, { logits, s: this.#s, ...this.#columns });
  }

  get #columns() {
    const { site, mostTokens } = this.of;
    const { factors, ranks, tokens } = site;
    return { factors, ranks, tokens, ...this.#tiles, most: Math.ceil(mostTokens / 16) * 16 };
  }

  /**
   * dh = dy W + what the adapters add, and adds to their gradients, a tile at a time: in sums that do not depend on where
   * chunks end. `dy` loses the gradients of trained tokens.
   */
  backward(dy: Tensor, weight: Weight, dh: Tensor): void {
    const { device, of, h } = this;
    const { site, span, upSpan } = of;
    const { factors, ranks, module } = site;
    if (of.mostTokens > 0) columnsTake(device, { logits: dy, s: this.#ds, ...this.#columns });
    if (upSpan) this.#eachTile((low) => this.#productGradient(dy, low));
    const input = { ds: this.#ds, span, factors, ranks, module, ...this.#tiles, ...this.#rows, byTile: true } as const;
    linearBackward(device, { dy, weight, dx: dh, lora: input });
    this.#eachTile(({ at, tiles, ds }) => {
      const rows = { rowNumber: this.#part(this.#rows.rowNumber, at), dropout: this.#rows.dropout };
      loraDownGrad(device, { x: this.#part(h, at), ds, span, factors, ranks, module, ...tiles, ...rows });
    });
  }

  #productGradient(gradient: Tensor, { at, tiles, s, ds, isProduct }: Tile): void {
    if (!isProduct) return;
    const { site, upSpan } = this.of;
    const { factors, upRanks: ranks, scale, firstColumn } = site;
    const dy = this.#part(gradient, at);
    loraUpGrad(this.device, { dy, s, ds, span: upSpan!, factors, ranks, scale, firstColumn, ...tiles });
  }

  #part(of: Tensor, tile: number): Tensor {
    const { rowTile } = this.device;
    return rowsFrom(of, tile * rowTile, rowTile);
  }

  /** Calls `each` for the tiles with adapters, with their parts of s and ds. */
  #eachTile(each: (tile: Tile) => void): void {
    const { rowTile } = this.device;
    let from = 0;
    for (let at = 0; at < this.h.shape[0]! / rowTile; at++) {
      const { width, isProduct } = this.of.tiles[this.first + at]!;
      const part = (of: Tensor) => rowsFrom(of, from, width * rowTile);
      if (width > 0) each({ at, tiles: this.of.tileAt(this.first + at), s: part(this.#s), ds: part(this.#ds), isProduct });
      from += width * rowTile;
    }
  }
}

type Tile = {
  readonly at: number;
  readonly tiles: TargetTiles;
  readonly s: Tensor;
  readonly ds: Tensor;
  readonly isProduct: boolean;
};

// Keys and values kept of sequences that grow, and attention over them.
//
// They lie in pages of PAGE rows, and a sequence has those that it needs. Calls count its rows as if they lay next to each
// other, from a multiple of PAGE on: row r is row pages[r / PAGE] PAGE + r % PAGE of the cache. No number depends on where
// pages lie.

import { F, I, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { type Heads, headVariant, sizesOf } from "./attention.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({
  cache_write: { args: [P, P, P, P, I, I, I, I, I], returns: "void" },
  attention_decode: { args: [P, P, P, P, P, P, I, I, I, I, I, F, I, F], returns: "void" },
});

/** Rows of a page, as in kernels/triton/decode.py. */
export const PAGE = 32;

const known = (heads: Heads) => ({ ...sizesOf(heads), K: heads.kvHeads * heads.headDim });

/** Where keys and values of rows are kept: places i32[M], distinct, below 0 for none; pages i32[..]; cache c[S, 2 C D]. */
export type Places = { readonly places: Tensor; readonly pages: Tensor; readonly cache: Tensor };

/**
 * The row of the cache at places[m] = k and v of row m, or nothing where places[m] < 0: qkv c[M, (Q + 2C) D]; the heads of k,
 * then those of v. Other rows of the cache stay as they are.
 */
export const cacheWrite = op<Heads & Places & { qkv: Tensor }>(
  "cache_write",
  { qkv: "c M W", places: "i32 M", pages: "i32 P", cache: "c S 2K" },
  {
    known,
    cpu: ({ qkv, places, pages, cache, heads, kvHeads, headDim }) =>
      c.cache_write(qkv.ptr, places.ptr, pages.ptr, cache.ptr, PAGE, dim(qkv, 0), heads, kvHeads, headDim),
    cuda: ({ qkv, places, pages, cache, heads, headDim: D }, gpu) => {
      const kernel = gpu.kernel("cache_write");
      const words = (values: number) => (values * bytesOf(qkv.dtype)) / 4; // copies of bits
      const [W, skip] = [words(dim(cache, 1)), words(heads * D)];
      gpu.launch(kernel, [dim(qkv, 0), cdiv(W, kernel.constant("BLOCK"))], { qkv, places, pages, cache, W, skip });
    },
  },
);

type Attending = Heads & {
  readonly qkv: Tensor;
  readonly cache: Tensor;
  readonly pages: Tensor;
  readonly bounds: Tensor;
  /** Rows that are read together, i32[T, 2]: the first, and how many; null where all are extended by themselves. */
  readonly tiles: Tensor | null;
  /** Whether each row is in a tile. */
  readonly areAllTiled: boolean;
  readonly sinks: Tensor | null;
  readonly out: Tensor;
  readonly scale: number;
  readonly window: number;
  readonly cap: number;
};

/** Rows of a tile, at most. */
export const TILE_ROWS = 64;

/**
 * Attention of rows over keys that were kept, their own among them. Row m of qkv c[M, (Q + 2C) D] sees the keys max(bounds[m,
 * 0], bounds[m, 1] - window) .. bounds[m, 1] - 1 of its sequence (none: out is 0), window 0 = no limit; k and v of qkv are not
 * read. A row of a tile has ~bounds[m, 0] in place of bounds[m, 0]; a tile's are of one sequence, and no tile is longer than
 * TILE_ROWS. Scores have a cap where it is above 0, as in attention_forward. `sinks` f32[Q] are one more logit of each head,
 * without a value; null for none. out c[M, Q D]. A row's numbers depend neither on other rows nor on its tile.
 */
export const attentionDecode = op<Attending>(
  "attention_decode",
  { qkv: "c M W", cache: "c S 2K", pages: "i32 P", bounds: "i32 M 2", tiles: "i32 T 2", sinks: "f32 Q", out: "c M O" },
  {
    known,
    cpu: ({ qkv, cache, pages, bounds, sinks, out, heads, kvHeads, headDim, scale, window, cap }) =>
      c.attention_decode(
        ...([qkv.ptr, cache.ptr, pages.ptr, bounds.ptr, sinks?.ptr ?? null, out.ptr, PAGE] as const),
        ...([dim(qkv, 0), heads, kvHeads, headDim, scale, window, cap] as const),
      ),
    cuda: ({ areAllTiled, ...of }, gpu) => {
      const { qkv, cache, pages, bounds, tiles, sinks, out, heads, kvHeads, headDim: D, scale, window, cap } = of;
      const args = {
        ...{ qkv, cache, pages, bounds, tiles, sinks, out, D, heads, kv_heads: kvHeads, scale, window, cap },
        has_sinks: flag(sinks),
      };
      const own = (variant: Variant) => variant.constant("BM") === 1 && variant.constant("HEAD_DIM") === D;
      const alone = heads === kvHeads ? gpu.variants("attention_decode").find(own) : undefined;
      const kernel = alone ?? headVariant(gpu, "attention_decode", D, { BM: 16 });
      if (!areAllTiled) gpu.launch(kernel, [dim(qkv, 0), kvHeads, cdiv(heads / kvHeads, kernel.constant("BM"))], args);
      if (!tiles) return;
      const extend = headVariant(gpu, "attention_extend", D);
      gpu.launch(extend, [dim(tiles, 0), heads, cdiv(TILE_ROWS, extend.constant("BM"))], args);
    },
  },
);

// Launches of what extends sequences a row each, in all of their variants, for the table of what is compiled.

import { Arena } from "../../src/device/arena.ts";
import type { Device } from "../../src/device/device.ts";
import { expertSlots, fewExpertsScratch, fewRowsScratch, MOST_ROWS, readsExperts } from "../../src/device/fewrows.ts";
import { type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { NORMALISED } from "../../src/families/moe.ts";
import { RANK_TILE } from "../../src/methods/layout.ts";
import { CHOICE_WIDTH, chooseTokens, nextIds } from "../../src/ops/choose.ts";
import { fewExpertsDown, fewExpertsUp, fewRoute } from "../../src/ops/fewexperts.ts";
import { fewRowsNorm, fewRowsNormed, fewRowsRope, fewRowsSwiglu, MOST_NORMED } from "../../src/ops/fewrows/fused.ts";
import { fewRowsForward } from "../../src/ops/fewrows.ts";
import { fewEmbed, fewHead } from "../../src/ops/fewtables.ts";

/** A weight in each format that the GPU has. */
const packedOn = (gpu: Device, arena: Arena, shape: readonly [number, number], firstRow: readonly number[]): PackedWeight[] =>
  gpu.formats.flatMap((format) => {
    if (format === "dense" || format === "bf16") return [];
    const of = { format, shape, firstRow };
    return [{ ...of, ptr: arena.tensor("u8", partsOf(of).bytes).ptr }];
  });

/** What is left of generation: few rows, each with its own adapter, and the tokens that are chosen of their logits. */
export function launchFew(gpu: Device): void {
  using arena = new Arena(gpu, 1 << 25, "a test");
  const [N, K, G] = [64, 96, 2];
  const weight = arena.tensor(gpu.compute, N, K);
  const sizes = { M: MOST_ROWS, K: 128, N: 512, W: G * RANK_TILE, compute: gpu.compute };
  gpu.reserveScratch(
    Math.max(...(["dense", "fp8", "apart"] as const).map((reading) => fewRowsScratch({ ...sizes, reading }).bytes)),
  );
  const tables = {
    span: { least: 4, most: 4 },
    factors: arena.tensor("i64", 1, G, 4),
    ranks: arena.tensor("i32", 1, G),
    scale: arena.tensor("f32", 1, G),
    firstColumn: [0, 32, N],
    gains: null,
  };
  for (const rows of [1, 17, 65, 129, 200, 300, MOST_ROWS]) {
    const [x, y] = [arena.tensor(gpu.compute, rows, K), arena.tensor(gpu.compute, rows, N)];
    const lora = { ...tables, rowAdapter: arena.tensor("i32", rows) };
    for (const bias of [null, arena.tensor(gpu.compute, N)])
      for (const residual of [null, y])
        for (const adapters of [null, lora]) fewRowsForward(gpu, { x, weight, bias, residual, y, lora: adapters });
    for (const packed of packedOn(gpu, arena, [N, 128], [0, 32, N])) {
      const wide = arena.tensor(gpu.compute, rows, 128);
      for (const adapters of [null, lora])
        fewRowsForward(gpu, { x: wide, weight: packed, bias: null, residual: null, y, lora: adapters });
    }
    // As many programs as a multiprocessor runs at once, and more.
    const own = { factors: arena.tensor("i64", 1, 1, 4), ranks: arena.tensor("i32", 1, 1), scale: arena.tensor("f32", 1, 1) };
    for (const columns of [64, 256]) {
      const wide = { weight: arena.tensor(gpu.compute, columns, K), y: arena.tensor(gpu.compute, rows, columns) };
      for (const adapters of [null, { ...lora, ...own, firstColumn: [0, columns] }])
        fewRowsForward(gpu, { ...wide, x, bias: null, residual: null, lora: adapters });
    }
    const h = arena.tensor(gpu.compute, rows, N / 2);
    for (const bias of [null, arena.tensor(gpu.compute, N)])
      for (const adapters of [null, lora]) fewRowsSwiglu(gpu, { x, weight, bias, y, h, lora: adapters });
  }
  for (const hidden of [72, 4096, 8192, 16384]) {
    const [x, y] = [arena.tensor(gpu.compute, 3, hidden), arena.tensor(gpu.compute, 3, hidden)];
    const of = { x, weight: arena.tensor("f32", hidden), y, rstd: arena.tensor("f32", 3), eps: 1e-6 };
    for (const residual of [null, x]) fewRowsNorm(gpu, { ...of, residual });
    if (hidden > MOST_NORMED) continue;
    const product = {
      x: arena.tensor(gpu.compute, 3, K),
      weight: arena.tensor(gpu.compute, hidden, K),
      bias: null,
      lora: null,
    };
    fewRowsNormed(gpu, { ...product, residual: x, y: x, norm: of.weight, h: y, rstd: of.rstd, eps: 1e-6 });
  }
  for (const headDim of [24, 64, 128]) {
    const [rows, heads, kvHeads] = [3, 2, 1];
    const N = (heads + 2 * kvHeads) * headDim;
    const [x, out] = [arena.tensor(gpu.compute, rows, K), arena.tensor(gpu.compute, rows, N)];
    const lora = { ...tables, rowAdapter: arena.tensor("i32", rows), firstColumn: [0, heads * headDim, N] };
    const kept = { cache: arena.tensor(gpu.compute, 64, 2 * headDim), pages: arena.tensor("i32", 2) };
    const angles = { cos: arena.tensor("f32", 9, headDim / 2), sin: arena.tensor("f32", 9, headDim / 2), queryScale: null };
    const rotation = { positions: arena.tensor("i32", rows), ...angles, rotated: headDim, eps: 1e-6, heads, kvHeads, headDim };
    for (const norm of [null, arena.tensor("f32", headDim)])
      for (const bias of [null, arena.tensor(gpu.compute, N)])
        for (const adapters of [null, lora]) {
          const product = { x, weight: arena.tensor(gpu.compute, N, K), bias, lora: adapters };
          const places = arena.tensor("i32", rows);
          fewRowsRope(gpu, { ...product, ...rotation, ...kept, places, y: out, out, qWeight: norm, kWeight: norm });
        }
  }
  const [ids, tokens] = [arena.tensor("i32", 3), arena.tensor("i64", 1, 1, 4)];
  const table = { rowAdapter: ids, factors: tokens, ranks: arena.tensor("i32", 1, 1), scale: arena.tensor("f32", 1, 1) };
  fewEmbed(gpu, { x: arena.tensor(gpu.compute, 3, 64), ids, tokenRow: ids, ...table });
  const of64 = { x: arena.tensor(gpu.compute, 3, K), weight, y: arena.tensor(gpu.compute, 3, N) };
  const few = { span: { least: 4, most: 4 }, firstColumn: [0, N], downRanks: table.ranks, tokens, mostTokens: 4 };
  for (const products of [null, few.span]) fewHead(gpu, { ...of64, lora: { ...table, ...few, products } });
  const [logits, settings] = [arena.tensor(gpu.compute, 3, 40), arena.tensor("f32", 3, CHOICE_WIDTH)];
  const of = { logits, settings, classes: 37, targets: arena.tensor("i32", 3), chosen: arena.tensor("f32", 3, CHOICE_WIDTH) };
  for (const cap of [0, 30]) chooseTokens(gpu, { ...of, scale: 1, cap });
  nextIds(gpu, { chosen: of.chosen, source: ids, ids: arena.tensor("i32", 3) });
}

/** Layers of experts: each activation, format and height of tiles, with and without adapters, of few and many experts. */
export function launchFewExperts(gpu: Device): void {
  const [H, I, k] = [64, 64, 2];
  for (const [E, rows] of [
    [8, 4],
    [4, 100],
    [300, 4],
  ] as const) {
    using arena = new Arena(gpu, 1 << 24, "a test");
    const pairs = rows * k;
    gpu.reserveScratch(fewExpertsScratch({ pairs, K: I, N: 2 * I, W: 2 * RANK_TILE }).bytes);
    const numbers = { experts: arena.tensor("i32", rows, k), weights: arena.tensor("f32", rows, k) };
    const routes = {
      ...{ ...numbers, place: arena.tensor("i32", rows, k), source: arena.tensor("i32", pairs) },
      ...{ firstRow: arena.tensor("i32", E + 1), blocks: arena.tensor("i32", 4 * expertSlots(pairs, E)) },
    };
    const [x, y, out] = [rows, pairs, rows].map((count) => arena.tensor(gpu.compute, count, H));
    const [logits, bounds] = [arena.tensor(gpu.compute, rows, E), arena.tensor("i32", rows, 2)];
    fewRoute(gpu, { logits, correction: null, router: NORMALISED, bounds, routes });
    const rowAdapter = arena.tensor("i32", rows);
    const loraOf = (firstColumn: readonly number[]) => {
      const G = firstColumn.length - 1;
      const tables = { factors: arena.tensor("i64", 1, G, 4), strides: arena.tensor("i32", 1, G, 2) };
      const ranks = { ranks: arena.tensor("i32", 1, G), scale: arena.tensor("f32", 1, G) };
      return { span: { least: 4, most: 4 }, ...tables, ...ranks, firstColumn };
    };
    for (const squares of [false, true]) {
      const G = squares ? I : 2 * I;
      const kind = { ...(squares && { squares: true as const }), interleaved: false, clamp: null };
      const dense = { first: arena.tensor(gpu.compute, G, H), stride: 0 };
      const packed = packedOn(gpu, arena, [G, H], [0, G]);
      const firsts = [dense.first, ...packed.filter(({ format }) => readsExperts(gpu.compute, format, [H]))];
      const [act, gateUp] = [arena.tensor(gpu.compute, pairs, I), arena.tensor(gpu.compute, pairs, G)];
      for (const first of firsts)
        for (const lora of [null, loraOf([0, G])]) {
          const weight = { first, experts: E, stride: 2 * G * H };
          fewExpertsUp(gpu, { routes, rowAdapter, weight, bias: null, lora, x: x!, kind, gateUp, act });
        }
      for (const lora of [null, loraOf([0, H])]) {
        const weight = { first: arena.tensor(gpu.compute, H, I), experts: E, stride: 4 * H * I };
        fewExpertsDown(gpu, { routes, rowAdapter, weight, bias: null, lora, act, y: y!, residual: null, out: out! });
      }
    }
  }
}

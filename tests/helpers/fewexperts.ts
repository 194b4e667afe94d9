// A layer's experts over few rows on any device, against float64: fresh random inputs, adapters of unequal ranks in some of the
// linears, factors that experts share and own ones, rows without an expert, poisoned outputs, and rows alone and among others.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import type { PackedFormat, WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { alignUp, range, sum } from "../../src/base/shape.ts";
import { rowsFrom } from "../../src/device/arena.ts";
import type { Device, Tensor } from "../../src/device/device.ts";
import { expertHeight, expertSlots } from "../../src/device/fewrows.ts";
import { type ExpertWeight, type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { NORMALISED } from "../../src/families/moe.ts";
import { toBf16, toF32 } from "../../src/files/convert.ts";
import type { ExpertActivation } from "../../src/ops/expert-act.ts";
import { fewExpertsDown, fewExpertsUp, fewRoute } from "../../src/ops/fewexperts.ts";
import { quantise } from "../../src/ops/packed.ts";
import { tensorsOn } from "./on-device.ts";
import { fillMxfp4, packedValues } from "./packed-values.ts";

type Case = {
  readonly experts: number;
  readonly perToken: number;
  readonly hidden: number;
  readonly inner: number;
  readonly rows: number;
  readonly kind: ExpertActivation;
  /** Of adapters at the linears of the first product, and at that of the second. */
  readonly ranks: readonly (readonly [up: readonly number[], down: number])[];
  readonly isShared?: boolean;
  readonly bias?: boolean;
};

const GATED: ExpertActivation = { interleaved: false, clamp: null };
const CASES: Readonly<Record<string, Case>> = {
  "many experts, two linears": {
    ...{ experts: 40, perToken: 8, hidden: 128, inner: 64, rows: 21, kind: GATED },
    ranks: [
      [[16, 16], 16],
      [[3, 0], 5],
      [[0, 33], 0],
    ],
  },
  "few experts, shared factors": {
    ...{ experts: 4, perToken: 2, hidden: 1152, inner: 192, rows: 70, kind: GATED, isShared: true },
    ranks: [
      [[8, 8], 8],
      [[17, 1], 40],
    ],
  },
  "one row": { experts: 8, perToken: 3, hidden: 64, inner: 64, rows: 1, kind: GATED, ranks: [[[4, 4], 4]] },
  "interleaved, clamped, with biases": {
    ...{ experts: 5, perToken: 2, hidden: 64, inner: 128, rows: 9, bias: true },
    kind: { interleaved: true, clamp: { limit: 0.8, alpha: 1.702 } },
    ranks: [[[5], 3]],
  },
  squares: {
    ...{ experts: 16, perToken: 4, hidden: 128, inner: 64, rows: 33 },
    kind: { squares: true, interleaved: false, clamp: null },
    ranks: [[[6], 0]],
  },
  "no adapter": { experts: 8, perToken: 2, hidden: 64, inner: 64, rows: 40, kind: GATED, ranks: [] },
};

type Factors = { readonly a: Float32Array; readonly b: Float32Array };

const bits = (of: Uint8Array) => Buffer.from(of).toString("base64");

/** Numbers f64 of a bias, a product and what an adapter adds, for one expert. */
function applied(
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  [out, width]: readonly [number, number],
  expert: number,
  bias: Float32Array | null,
): Float64Array {
  const y = new Float64Array(out);
  for (let n = 0; n < out; n++) {
    let total = bias ? bias[expert * out + n]! : 0;
    for (let k = 0; k < width; k++) total += weight[(expert * out + n) * width + k]! * x[k]!;
    y[n] = total;
  }
  return y;
}

function activated(y: Float64Array, { squares, interleaved, clamp }: ExpertActivation): Float64Array {
  if (squares) return y.map((value) => Math.max(value, 0) ** 2);
  const half = y.length / 2;
  return Float64Array.from({ length: half }, (_, i) => {
    let [gate, up] = interleaved ? [y[2 * i]!, y[2 * i + 1]!] : [y[i]!, y[half + i]!];
    if (clamp) [gate, up] = [Math.min(gate, clamp.limit), Math.max(-clamp.limit, Math.min(up, clamp.limit)) + 1];
    return (gate * up) / (1 + Math.exp(-(clamp?.alpha ?? 1) * gate));
  });
}

export function fewExpertsLikeFloat64(
  open: () => Device,
  tolerance: number,
  isInvariant: boolean,
  formats: readonly WeightFormat[] = ["dense"],
): void {
  for (const format of formats)
    for (const [name, of] of Object.entries(CASES))
      test(`${name}${format === "dense" ? "" : `, in ${format}`}`, async () => {
        using device = open();
        device.reserveScratch(2 ** 26);
        const seed = Math.floor(1e9 * Math.random());
        const rng = new Rng(seed);
        const { compute } = device;
        const { experts: E, perToken: k, hidden: H, inner: I, rows: M, kind, ranks, isShared = false } = of;
        const exact = (values: Float32Array) => toF32(new Uint8Array(toBf16(values).buffer), "bf16");
        const random = (size: number, scale: number) => exact(Float32Array.from({ length: size }, () => scale * rng.normal()));
        const { take, put } = tensorsOn(device);
        const G = kind.squares ? I : 2 * I;
        const columns = kind.squares || kind.interleaved ? [G] : [I, I];
        const weights = async (out: readonly number[], width: number) => {
          const N = sum(out);
          const values = random(E * N * width, width ** -0.5);
          const firstRow = [0, ...out.map((_, g) => sum(out.slice(0, g + 1)))];
          if (format === "dense") {
            const first = put(compute, values, E * N, width);
            const weight: ExpertWeight = {
              first: { ...first, shape: [N, width] },
              experts: E,
              stride: N * width * bytesOf(compute),
            };
            return { weight, values };
          }
          const layout = { format: format as PackedFormat, shape: [N, width], firstRow } as const;
          const stride = alignUp(partsOf(layout).bytes, 256);
          const base = device.allocate(E * stride, "a test");
          const absmax = take("f32", (N * width) / 64 + 64);
          const found = new Float64Array(values.length);
          const isBf16 = compute === "bf16"; // as products read codes
          for (const e of range(E)) {
            const weight: PackedWeight = {
              ...layout,
              ptr: base + e * stride,
              ...(format === "fp8" && { isSingle: true as const }),
            };
            const from = put(compute, values.subarray(e * N * width, (e + 1) * N * width), N, width);
            if (format === "mxfp4") fillMxfp4(device, weight, rng);
            else
              for (const linear of range(out.length)) {
                const part = rowsFrom(from, firstRow[linear]!, out[linear]!);
                quantise(device, { from: part, weight, linear, absmax });
              }
            found.set(await packedValues(device, weight, format === "nf4" && isBf16), e * N * width);
          }
          const single = format === "fp8" ? { isSingle: true as const } : {};
          return { weight: { first: { ...layout, ptr: base, ...single }, experts: E, stride }, values: found };
        };
        const [up, down] = [await weights(columns, H), await weights([H], I)];
        const [bu, bd] = [of.bias ? random(E * G, 1) : null, of.bias ? random(E * H, 1) : null];
        const L = ranks.length;
        /** Of the first product or the second: tables, and the factors of each adapter and linear. */
        const adapters = (own: readonly (readonly number[])[], out: readonly number[], width: number, isUp: boolean) => {
          const count = out.length;
          const [factors, strides] = [new BigInt64Array(L * count * 4), new Int32Array(L * count * 2)];
          const values = new Map<string, Factors>();
          for (const [l, each] of own.entries())
            for (const [g, rank] of each.entries()) {
              if (rank === 0) continue;
              const [ofA, ofB] = [isShared && isUp ? 1 : E, isShared && !isUp ? 1 : E];
              const a = random(ofA * rank * width, width ** -0.5);
              const b = random(ofB * rank * out[g]!, 0.4);
              const at = l * count + g;
              factors.set(
                [a, b].map((of) => BigInt(put(compute, of, of.length).ptr)),
                4 * at,
              );
              strides.set([ofA === 1 ? 0 : rank * width, ofB === 1 ? 0 : rank * out[g]!], 2 * at);
              values.set(`${l} ${g}`, { a, b });
            }
          const scale = Float32Array.from({ length: L * count }, (_, i) => 0.5 + 0.1 * i);
          const found = {
            span: { least: 1, most: Math.max(...own.flat()) },
            ...{ factors: put("i64", factors, L, count, 4), strides: put("i32", strides, L, count, 2) },
            ranks: put("i32", Int32Array.from(own.flat()), L, count),
            scale: put("f32", scale, L, count),
            firstColumn: [0, ...out.map((_, g) => sum(out.slice(0, g + 1)))],
          };
          const add = (l: number, expert: number, x: ArrayLike<number>, y: Float64Array) => {
            for (const [g, rank] of (own[l] ?? []).entries()) {
              if (rank === 0) continue;
              const { a, b } = values.get(`${l} ${g}`)!;
              const [atA, atB] = [
                isShared && isUp ? 0 : expert * rank * width,
                isShared && !isUp ? 0 : expert * rank * out[g]!,
              ];
              for (const r of range(rank)) {
                let s = 0;
                for (let i = 0; i < width; i++) s += a[atA + r * width + i]! * x[i]!;
                for (let n = 0; n < out[g]!; n++)
                  y[found.firstColumn[g]! + n]! += scale[l * count + g]! * s * b[atB + r * out[g]! + n]!;
              }
            }
          };
          return { lora: L === 0 ? null : found, add };
        };
        const loraUp = adapters(
          ranks.map(([each]) => each),
          columns,
          H,
          true,
        );
        const loraDown = adapters(
          ranks.map(([, each]) => [each]),
          [H],
          I,
          false,
        );
        const [x, r, logits] = [random(M * H, 1), random(M * H, 1), random(M * E, 1)];
        const adapterOf = range(M).map((m) => ((m * 5) % (L + 1)) - 1);
        const seen = range(M).flatMap((m) => (m === 5 ? [0, 0] : [0, m + 1])); // row 5 attends to nothing
        const [X, R, logitsOn] = [put(compute, x, M, H), put(compute, r, M, H), put(compute, logits, M, E)];
        const [bounds, rowAdapter] = [put("i32", Int32Array.from(seen), M, 2), put("i32", Int32Array.from(adapterOf), M)];
        const [biasUp, biasDown] = [bu && put(compute, bu, E, G), bd && put(compute, bd, E, H)];
        const router = { ...NORMALISED };
        const run = async (from: number, rows: number) => {
          const part = (t: Tensor) => rowsFrom(t, from, rows);
          const pairs = rows * k;
          const slots = expertSlots(pairs, E, expertHeight(pairs, E));
          const routes = {
            ...{ experts: take("i32", rows, k), weights: take("f32", rows, k), place: take("i32", rows, k) },
            ...{ source: take("i32", pairs), firstRow: take("i32", E + 1), blocks: take("i32", 4 * slots) },
          };
          fewRoute(device, { logits: part(logitsOn), correction: null, router, bounds: part(bounds), routes });
          const [gateUp, act] = [take(compute, pairs, G), take(compute, pairs, I)];
          const shared = { routes, rowAdapter: part(rowAdapter) };
          fewExpertsUp(device, {
            ...shared,
            x: part(X),
            ...{ weight: up.weight, bias: biasUp, lora: loraUp.lora, kind, gateUp, act },
          });
          const [y, out] = [take(compute, pairs, H), take(compute, rows, H)];
          const second = { weight: down.weight, bias: biasDown, lora: loraDown.lora, act, y };
          fewExpertsDown(device, { ...shared, ...second, residual: part(R), out });
          const chosen = new Int32Array((await device.read(routes.experts)).buffer);
          return { chosen, weights: toF32(await device.read(routes.weights), "f32"), out: await device.read(out) };
        };
        const all = await run(0, M);
        const out = toF32(all.out, compute);
        let worst = 0;
        for (const m of range(M).filter((m) => m < 4 || m === 5 || m === M - 1)) {
          const own = x.subarray(m * H, (m + 1) * H);
          const want = Float64Array.from(r.subarray(m * H, (m + 1) * H));
          for (const j of range(k)) {
            const expert = all.chosen[m * k + j]!;
            expect(expert < 0, `row ${m}, seed ${seed}`).toBe(m === 5);
            if (expert < 0) continue;
            const y = applied(own, up.values, [G, H], expert, bu);
            loraUp.add(adapterOf[m]!, expert, own, y);
            const act = activated(y, kind);
            const z = applied(act, down.values, [H, I], expert, bd);
            loraDown.add(adapterOf[m]!, expert, act, z);
            for (const [n, value] of z.entries()) want[n]! += all.weights[m * k + j]! * value;
          }
          const size = Math.hypot(...want);
          worst = Math.max(worst, Math.hypot(...want.map((value, n) => value - out[m * H + n]!)) / size);
        }
        expect(worst, `seed ${seed}`).toBeLessThan(tolerance);
        if (!isInvariant) return;
        const bytes = H * bytesOf(compute);
        for (const [from, rows] of [
          [0, 1],
          [M - 1, 1],
          [M >> 1, Math.min(17, M - (M >> 1))],
        ] as const)
          expect(bits((await run(from, rows)).out), `rows ${from} to ${from + rows} apart, seed ${seed}`).toBe(
            bits(all.out.subarray(from * bytes, (from + rows) * bytes)),
          );
      });
}

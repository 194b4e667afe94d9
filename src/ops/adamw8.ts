// AdamW with moments of 8 bits (Dettmers et al. 2022, as bitsandbytes has it) of one adapter.

import { L, native, P } from "../../ffi/native.ts";
import type { Tensor } from "../device/device.ts";
import { ADAMW_TABLE_WIDTH } from "./adamw.ts";
import { cdiv, dim, flag, op } from "./op.ts";

const c = native({ adamw8_step: { args: [P, P, P, P, P, P, P, L, P, P], returns: "void" } });

/** Numbers that a code can be. */
const CODES = 256;

/**
 * The numbers that codes stand for, ascending, the same bits as bitsandbytes' create_dynamic_map: 0, 1, and in each decade
 * from 1e-7 to 1 the middles of twice as many equal parts as in the one below it; `signed`, half as many, and their negatives.
 */
export function dynamicMap(signed: boolean): Float32Array<ArrayBuffer> {
  const found = [0, 1];
  for (let decade = 0; decade < 7; decade++) {
    const parts = (signed ? 1 : 2) * 2 ** decade;
    const scale = Math.fround(10 ** (decade - 6));
    for (let i = 0; i < parts; i++) {
      const middle = Math.fround(Math.fround(bound(i, parts) + bound(i + 1, parts)) / 2);
      const value = Math.fround(scale * middle);
      found.push(...(signed ? [value, -value] : [value]));
    }
  }
  return Float32Array.from(found).sort();
}

/** torch.linspace(0.1, 1, parts + 1)[i], which counts from the nearer end. */
function bound(i: number, parts: number): number {
  const first = Math.fround(0.1);
  const step = Math.fround(Math.fround(1 - first) / parts);
  return Math.fround(i < (parts + 1) >> 1 ? first + step * i : 1 - step * (parts - i));
}

/**
 * f32[4, 256], the `codes` of a step: the numbers of m's codes, what lies halfway between each and the next, and the same of
 * v's.
 */
export function codeTable(): Float32Array<ArrayBuffer> {
  const table = new Float32Array(4 * CODES).fill(Number.POSITIVE_INFINITY);
  for (const [i, map] of [dynamicMap(true), dynamicMap(false)].entries()) {
    table.set(map, 2 * i * CODES);
    const halves = map.subarray(1).map((value, code) => (map[code]! + value) / 2);
    table.set(halves, (2 * i + 1) * CODES);
  }
  return table;
}

/**
 * AdamW's step (ops/adamw.ts: the table, params, grads, copy, factors) with moments u8[P]: a code's number times the largest
 * absolute value of its 128, mAbsmax or vAbsmax f32[P / 128]. The step is computed with the new moments in f32; then each is
 * the code whose number is nearest, of two as near the lower one. codes f32[4, 256]: `codeTable`.
 */
export const adamw8Step = op<{
  params: Tensor;
  grads: Tensor;
  m: Tensor;
  v: Tensor;
  mAbsmax: Tensor;
  vAbsmax: Tensor;
  codes: Tensor;
  copy: Tensor | null;
  factors: Tensor;
  table: Tensor;
}>(
  "adamw8_step",
  {
    params: "f32 128F",
    grads: "f32 128F",
    m: "u8 128F",
    v: "u8 128F",
    mAbsmax: "f32 F",
    vAbsmax: "f32 F",
    codes: `f32 4 ${CODES}`,
    copy: "bf16 128F",
    factors: "i32 F",
    table: `f32 ${ADAMW_TABLE_WIDTH}`,
  },
  {
    cpu: ({ params, grads, m, v, mAbsmax, vAbsmax, codes, factors, table }) =>
      c.adamw8_step(
        ...[params.ptr, grads.ptr, m.ptr, v.ptr, mAbsmax.ptr, vAbsmax.ptr, codes.ptr],
        ...[dim(params, 0), factors.ptr, table.ptr],
      ),
    cuda: ({ params, grads, m, v, mAbsmax, vAbsmax, codes, copy, factors, table }, gpu) => {
      const count = dim(factors, 0);
      const kernel = gpu.kernel("adamw8_step", { COPY: flag(copy) });
      const grid = [cdiv(count, kernel.constant("BLOCKS"))] as const;
      const moments = { m, v, m_absmax: mAbsmax, v_absmax: vAbsmax, codes };
      gpu.launch(kernel, grid, { params, grads, ...moments, copy, factors, table, F: count });
    },
  },
);

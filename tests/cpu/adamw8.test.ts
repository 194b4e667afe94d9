// AdamW with moments of 8 bits: the map of codes and six steps are bitsandbytes', each code is the nearest one, and a block of
// 128 depends on nothing else.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { OptimizerStep } from "../../src/bus/messages.ts";
import { Arena } from "../../src/device/arena.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { stepTable } from "../../src/engine/pool/optimizer.ts";
import { stateOf } from "../../src/methods/optimizers.ts";
import { ADAMW_TABLE_WIDTH } from "../../src/ops/adamw.ts";
import { adamw8Step, codeTable, dynamicMap } from "../../src/ops/adamw8.ts";

type Golden = {
  readonly settings: { readonly beta1: number; readonly beta2: number; readonly eps: number; readonly weight_decay: number };
  readonly maps: readonly (readonly number[])[];
  readonly start: readonly number[];
  readonly gradients: readonly (readonly number[])[];
  readonly rates: readonly number[];
  readonly coefficients: readonly number[];
  readonly steps: readonly {
    readonly params: readonly number[] | null;
    readonly codes: readonly [string, string];
    readonly absmax: readonly [readonly number[], readonly number[]];
  }[];
};
const GOLDEN: Golden = JSON.parse(readFileSync(join(import.meta.dir, "..", "golden", "optimizers", "adamw-8bit.json"), "utf8"));
const BLOCK = 128;
const MAPS = [dynamicMap(true), dynamicMap(false)] as const;

/** The state of one adapter, of whole blocks. */
type State = { params: Float32Array; m: Uint8Array; v: Uint8Array; mAbsmax: Float32Array; vAbsmax: Float32Array };
const emptyState = (size: number): State => ({
  params: new Float32Array(size),
  ...{ m: new Uint8Array(size), v: new Uint8Array(size) },
  ...{ mAbsmax: new Float32Array(size / BLOCK), vAbsmax: new Float32Array(size / BLOCK) },
});
type Step = Omit<Extract<OptimizerStep, { beta1: number }>, "adapter">;
const bytesOf = (values: ArrayBufferView) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** The kernel's step; returns the gradients that it leaves. */
async function kernelStep(state: State, grads: Float32Array, factors: Int32Array, step: Step | null): Promise<Float32Array> {
  using device = new CpuDevice(2);
  using arena = new Arena(device, 1 << 20, "a test");
  const size = grads.length;
  const put = (dtype: "f32" | "u8" | "i32", data: Float32Array | Uint8Array | Int32Array, ...shape: number[]) => {
    const tensor = arena.tensor(dtype, ...(shape.length > 0 ? shape : [data.length]));
    device.write(tensor, data);
    return tensor;
  };
  const { m, v, mAbsmax, vAbsmax } = state;
  const moments = { m: put("u8", m), v: put("u8", v), mAbsmax: put("f32", mAbsmax), vAbsmax: put("f32", vAbsmax) };
  const tensors = { params: put("f32", state.params), ...moments };
  const table = put("f32", stepTable(step ? [{ ...step, adapter: 0 }] : [], 1), ADAMW_TABLE_WIDTH);
  const all = { ...tensors, grads: put("f32", grads, size), copy: null, factors: put("i32", factors) };
  adamw8Step(device, { ...all, codes: put("f32", codeTable(), 4, 256), table });
  for (const [name, tensor] of Object.entries(tensors)) bytesOf(state[name as keyof State]).set(await device.read(tensor));
  return new Float32Array((await device.read(all.grads)).buffer);
}

/** Of two as near the lower one. */
function nearest(map: Float32Array, share: number): number {
  let best = 0;
  for (const [code, value] of map.entries()) if (Math.abs(value - share) < Math.abs(map[best]! - share)) best = code;
  return best;
}

/** The step in doubles, from the papers' formulas; moments in f32 as they were decoded. */
function plainStep(state: State, grads: Float32Array, factors: Int32Array, step: Step): State {
  const { t, learningRate, ratio, weightDecay, coefficient, beta1, beta2, eps } = step;
  const next = emptyState(grads.length);
  for (const block of range(grads.length / BLOCK)) {
    const at = range(BLOCK).map((i) => block * BLOCK + i);
    const moment = (codes: Uint8Array, absmax: Float32Array, map: Float32Array, beta: number, of: (g: number) => number) =>
      at.map((i) => beta * map[codes[i]!]! * absmax[block]! + (1 - beta) * of(coefficient * grads[i]!));
    const m = moment(state.m, state.mAbsmax, MAPS[0], beta1, (g) => g);
    const v = moment(state.v, state.vAbsmax, MAPS[1], beta2, (g) => g * g);
    const rate = learningRate * (factors[block] ? ratio : 1);
    for (const [k, i] of at.entries()) {
      const update = m[k]! / (1 - beta1 ** t) / (Math.sqrt(v[k]! / (1 - beta2 ** t)) + eps);
      next.params[i] = state.params[i]! * (1 - rate * weightDecay) - rate * update;
    }
    for (const [values, codes, absmax, map] of [
      [m, next.m, next.mAbsmax, MAPS[0]],
      [v, next.v, next.vAbsmax, MAPS[1]],
    ] as const) {
      const most = Math.max(...values.map(Math.abs));
      absmax[block] = most;
      for (const [k, i] of at.entries()) codes[i] = nearest(map, most > 0 ? values[k]! / most : 0);
    }
  }
  return next;
}

/** Codes differ only where a value lies halfway, by its rounding: seldom, and by one. */
function expectCodes(got: Uint8Array, want: Uint8Array, most: number): void {
  const off = got.map((code, i) => Math.abs(code - want[i]!));
  expect(Math.max(...off)).toBeLessThanOrEqual(1);
  expect(off.filter((by) => by > 0).length).toBeLessThanOrEqual(most);
}

function expectNear(got: Float32Array, want: ArrayLike<number>, tolerance: number): void {
  for (const [i, value] of got.entries())
    expect(Math.abs(value - want[i]!)).toBeLessThanOrEqual(tolerance * Math.abs(want[i]!) + 1e-30);
}

const padded = (values: readonly number[]): Float32Array => {
  const all = new Float32Array(Math.ceil(values.length / BLOCK) * BLOCK);
  all.set(values);
  return all;
};

test("the maps of codes are those of bitsandbytes, bit for bit", () => {
  for (const [i, map] of MAPS.entries()) expect([...new Int32Array(map.buffer)]).toEqual([...GOLDEN.maps[i]!]);
  const { m, v } = stateOf("adamw-8bit");
  expect([MAPS[0][m!.zero], MAPS[1][v!.zero]]).toEqual([0, 0]);
});

test("six steps are those of bitsandbytes, whose blocks of 256 have 128 elements", async () => {
  const { settings, start, gradients, rates, coefficients, steps } = GOLDEN;
  const { weight_decay: weightDecay, ...rule } = settings;
  const size = padded(start).length;
  const state = emptyState(size);
  state.params.set(start);
  for (const [i, { params, codes, absmax }] of steps.entries()) {
    const step = { t: i + 1, learningRate: rates[i]!, ratio: 1, weightDecay, coefficient: coefficients[i]!, ...rule };
    const left = await kernelStep(state, padded(gradients[i]!), new Int32Array(size / BLOCK), step);
    expect(left.every((value) => value === 0)).toBe(true);
    for (const [which, own, map] of [
      [0, state.m, MAPS[0]],
      [1, state.v, MAPS[1]],
    ] as const) {
      expectCodes(own.subarray(0, start.length), Buffer.from(codes[which], "hex"), 1);
      expect(own.subarray(start.length).every((code) => map[code] === 0)).toBe(true);
    }
    // Of a block without gradients bitsandbytes has the largest value 1, and all codes are 0's.
    const wanted = absmax.map((of) => of.map((value, b) => (i < 2 && b === 2 ? 0 : value)));
    expectNear(state.mAbsmax, wanted[0]!, 1e-6);
    expectNear(state.vAbsmax, wanted[1]!, 1e-6);
    for (const [k, want] of params?.entries() ?? []) expect(Math.abs(state.params[k]! - want)).toBeLessThan(2e-6);
  }
});

test("steps agree with the formulas in double precision, with rates of B and clipping", async () => {
  const size = 37 * BLOCK;
  const rng = new Rng(11);
  const state = emptyState(size);
  for (const i of state.params.keys()) state.params[i] = rng.normal();
  const factors = Int32Array.from({ length: size / BLOCK }, () => rng.below(2));
  for (const t of [1, 2, 3, 4]) {
    const scale = 10 ** (3 * rng.uniform() - 5);
    const grads = Float32Array.from({ length: size }, () => scale * rng.normal() * 10 ** (-3 * rng.uniform()));
    const rule = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    const step: Step = { t, learningRate: 1e-2, ratio: 4, weightDecay: 0.05, coefficient: 0.37, ...rule };
    const want = plainStep(state, grads, factors, step);
    await kernelStep(state, grads, factors, step);
    expectCodes(state.m, want.m, size / 1000);
    expectCodes(state.v, want.v, size / 1000);
    expectNear(state.mAbsmax, want.mAbsmax, 1e-6);
    expectNear(state.vAbsmax, want.vAbsmax, 1e-6);
    for (const [i, value] of state.params.entries()) expect(Math.abs(value - want.params[i]!)).toBeLessThan(2e-5);
  }
});

test("what lies halfway between two numbers of a map, or a hair to either side of that, has the nearest code", async () => {
  for (const [which, map] of [
    ["m", MAPS[0]],
    ["v", MAPS[1]],
  ] as const)
    for (const beyond of [-1, 0, 1]) {
      // m = g and v = g^2 of a first step without decay of what was; the largest of each block is 1
      const shares = range(255).map((code) => ((map[code]! + map[code + 1]!) / 2) * (1 + 1e-5 * beyond));
      const values = padded([...shares.slice(0, 127), 1, ...shares.slice(127, 254), 1, shares[254]!, 1]);
      const exact = which === "m" ? values : values.map((value) => Math.fround(Math.sqrt(value)));
      const state = emptyState(values.length);
      const rule = { beta1: 0, beta2: 0, eps: 1e-8 };
      await kernelStep(state, exact, new Int32Array(values.length / BLOCK), {
        ...{ t: 1, learningRate: 0, ratio: 1, weightDecay: 0, coefficient: 1, ...rule },
      });
      const became = which === "m" ? exact : exact.map((g) => Math.fround(g * g));
      for (const [i, code] of state[which].entries()) {
        const distance = (of: number) => Math.abs(map[of]! - became[i]!);
        for (const other of [code - 1, code + 1]) {
          if (other < 0 || other > 255) continue;
          expect(distance(code)).toBeLessThanOrEqual(distance(other) + 2e-7 * Math.abs(became[i]!));
        }
      }
    }
});

test("a block's codes depend on nothing outside it, and without a step nothing is touched", async () => {
  const size = 40 * BLOCK; // more than a thread takes at a time
  const rng = new Rng(12);
  const grads = range(3).map(() => Float32Array.from({ length: size }, () => rng.normal()));
  const factors = Int32Array.from({ length: size / BLOCK }, (_, i) => i % 2);
  const step: Step = {
    ...{ t: 1, learningRate: 1e-2, ratio: 2, weightDecay: 0.01, coefficient: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8 },
  };
  const train = async (from: number, to: number) => {
    const state = emptyState(to - from);
    for (const [i, of] of grads.entries())
      await kernelStep(state, of.slice(from, to), factors.slice(from / BLOCK, to / BLOCK), { ...step, t: i + 1 });
    return state;
  };
  const whole = await train(0, size);
  const part = await train(33 * BLOCK, 35 * BLOCK);
  for (const name of Object.keys(part) as (keyof State)[]) {
    const per = name.endsWith("Absmax") ? BLOCK : 1;
    expect(part[name]).toEqual(whole[name].slice((33 * BLOCK) / per, (35 * BLOCK) / per) as never);
  }
  const before = structuredClone(whole);
  expect(await kernelStep(whole, grads[0]!, factors, null)).toEqual(grads[0]!);
  expect(whole).toEqual(before);
});

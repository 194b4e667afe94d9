// The kernels of Mamba 2's layers on the cpu device, against plain loops in float64 and finite differences of them: sequences
// of a token, of a chunk, a token more, and of several chunks, packed with padding.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { Tensor } from "../../src/device/device.ts";
import { groupnormBackward, groupnormForward } from "../../src/ops/groupnorm.ts";
import { stateSpaceBackward, stateSpaceDecode, stateSpaceForward } from "../../src/ops/statespace.ts";
import { along, distance, onCpu, packedRows, random, type Values } from "../helpers/recurrence.ts";

const { device, put, putInts, empty, read } = onCpu();
const { lengths, starts, rows, bounds, isPadding, places, slotOf, capacity } = packedRows([2, 64, 1, 65, 0, 150, 5]);

const heads = { heads: 6, headDim: 5, groups: 2, stateDim: 7 };
const { heads: N, headDim: P, groups: G, stateDim: S } = heads;
const [W, STRIDE] = [N * P + 2 * G * S, N + 9];
const rng = new Rng(5);
const [mixed, steps, dout] = [random(rng, rows * W), random(rng, rows * STRIDE, 2), random(rng, rows * N * P)];
const vectors = { decay: random(rng, N), bias: random(rng, N), skip: random(rng, N) };
const LIMITS = { least: 0.3, most: 2.5 };
/** dt of each head: the last columns of its rows. */
const stepsOf = (of: Tensor): Tensor => ({ ...of, ptr: of.ptr + 4 * (STRIDE - N), shape: [of.shape[0]!, N], stride: STRIDE });
const softplus = (x: number) => Math.log1p(Math.exp(x));

/** The formulas of the contract, token by token. */
function reference(mixed: Values, steps: Values): Float64Array {
  const out = new Float64Array(rows * N * P);
  for (const [i, length] of lengths.entries())
    for (const h of range(N)) {
      const state = range(P).map(() => new Float64Array(S));
      const key = N * P + Math.floor((h * G) / N) * S;
      for (const m of range(length).map((t) => starts[i]! + t)) {
        const step = Math.min(
          Math.max(softplus(steps[m * STRIDE + STRIDE - N + h]! + vectors.bias[h]!), LIMITS.least),
          LIMITS.most,
        );
        const keeps = Math.exp(-Math.exp(vectors.decay[h]!) * step);
        for (const p of range(P)) {
          const x = mixed[m * W + h * P + p]!;
          for (const s of range(S)) state[p]![s] = keeps * state[p]![s]! + step * x * mixed[m * W + key + s]!;
          const found = range(S).reduce((sum, s) => sum + mixed[m * W + key + G * S + s]! * state[p]![s]!, 0);
          out[(m * N + h) * P + p] = found + vectors.skip[h]! * x;
        }
      }
    }
  return out;
}

const args = {
  mixed: put(mixed, rows, W),
  steps: stepsOf(put(steps, rows, STRIDE)),
  decay: put(vectors.decay, N),
  bias: put(vectors.bias, N),
  skip: put(vectors.skip, N),
  bounds: putInts(bounds, rows, 2),
  ...heads,
  ...LIMITS,
};
const forward = async () => {
  const out = empty(rows, N * P);
  stateSpaceForward(device, { ...args, out, state: null });
  return read(out);
};
const backward = async () => {
  const [dmixed, dsteps] = [empty(rows, W), put(new Float32Array(rows * STRIDE).fill(7), rows, STRIDE)];
  stateSpaceBackward(device, { ...args, dout: put(dout, rows, N * P), dmixed, dsteps: stepsOf(dsteps) });
  return { dmixed: await read(dmixed), dsteps: await read(dsteps) };
};

describe("the state space", () => {
  test("forward is the rule, token by token", async () => {
    expect(distance(await forward(), reference(mixed, steps))).toBeLessThan(1e-6);
  });

  test("steps without an upper limit", async () => {
    const out = empty(rows, N * P);
    stateSpaceForward(device, { ...args, least: 0, most: null, out, state: null });
    const [all, limited] = [await read(out), await forward()];
    expect(distance(all, limited)).toBeGreaterThan(0.01);
    expect(all.every(Number.isFinite)).toBe(true);
  });

  const inColumns = (from: number, to: number) => (column: number) => column >= from && column < to;
  const parts: readonly (readonly [string, "mixed" | "steps", (column: number) => boolean])[] = [
    ["x", "mixed", inColumns(0, N * P)],
    ["B", "mixed", inColumns(N * P, N * P + G * S)],
    ["C", "mixed", inColumns(N * P + G * S, W)],
    ["dt", "steps", inColumns(STRIDE - N, STRIDE)],
  ];
  test.each(parts)(
    "the gradient of %s is that of finite differences, sequence by sequence, 0 in padding",
    async (_, of, isIn) => {
      const { dmixed, dsteps } = await backward();
      const width = of === "mixed" ? W : STRIDE;
      const whole = of === "mixed" ? dmixed : dsteps;
      if (of === "steps") expect(whole.filter((value, i) => !isIn(i % width) && value !== 7)).toHaveLength(0);
      const got = whole.map((value, i) => (isIn(i % width) ? value : 0));
      for (const row of range(rows).filter(isPadding))
        expect(Math.hypot(...got.subarray(row * width, (row + 1) * width))).toBe(0);
      for (const [i, length] of lengths.entries()) {
        if (length === 0) continue;
        const [from, to] = [starts[i]! * width, (starts[i]! + length) * width];
        const direction = random(new Rng(i, 77), rows * width).map((value, at) =>
          at >= from && at < to && isIn(at % width) && isInside(of, at) ? value : 0,
        );
        const at = (step: number) => {
          const moved = Float64Array.from(of === "mixed" ? mixed : steps, (value, at) => value + step * direction[at]!);
          return along(dout, of === "mixed" ? reference(moved, steps) : reference(mixed, moved));
        };
        const numeric = (8 * (at(1e-4) - at(-1e-4)) - (at(2e-4) - at(-2e-4))) / 12e-4;
        const size = Math.hypot(...got.subarray(from, to)) * Math.hypot(...direction.subarray(from, to));
        expect(size).toBeGreaterThan(0);
        expect(Math.abs(along(got, direction) - numeric) / size, `${length} tokens`).toBeLessThan(1e-5);
      }
    },
  );

  /** A step near a limit has no gradient that differences could find. */
  function isInside(of: "mixed" | "steps", at: number): boolean {
    const step = softplus(steps[at]! + vectors.bias[(at % STRIDE) - STRIDE + N]!);
    return of === "mixed" || [LIMITS.least, LIMITS.most].every((limit) => Math.abs(step - limit) > 0.01);
  }

  test("steps beyond a limit have no gradient, others have", async () => {
    const { dsteps } = await backward();
    const found = range(rows).flatMap((m) =>
      isPadding(m)
        ? []
        : range(N).map((h) => {
            const step = softplus(steps[m * STRIDE + STRIDE - N + h]! + vectors.bias[h]!);
            return { isLimited: step < LIMITS.least || step > LIMITS.most, value: dsteps[m * STRIDE + STRIDE - N + h]! };
          }),
    );
    const [limited, others] = [found.filter((of) => of.isLimited), found.filter((of) => !of.isLimited)];
    expect(limited.length).toBeGreaterThan(100);
    expect(limited.every(({ value }) => value === 0)).toBe(true);
    expect(others.every(({ value }) => value !== 0)).toBe(true);
  });

  test("a sequence is the same alone as among others, bit for bit", async () => {
    const [whole, all] = [await forward(), await backward()];
    for (const [i, length] of lengths.entries()) {
      if (length === 0) continue;
      const of = (values: Float32Array, width: number) => values.slice(starts[i]! * width, (starts[i]! + length) * width);
      const alone = {
        ...args,
        mixed: put(of(mixed, W), length, W),
        steps: stepsOf(put(of(steps, STRIDE), length, STRIDE)),
        bounds: putInts(
          range(length).flatMap(() => [0, length]),
          length,
          2,
        ),
      };
      const [out, dmixed] = [empty(length, N * P), empty(length, W)];
      const dsteps = put(new Float32Array(length * STRIDE).fill(7), length, STRIDE);
      stateSpaceForward(device, { ...alone, out, state: null });
      expect(await read(out)).toEqual(of(whole, N * P));
      stateSpaceBackward(device, { ...alone, dout: put(of(dout, N * P), length, N * P), dmixed, dsteps: stepsOf(dsteps) });
      expect(await read(dmixed)).toEqual(of(all.dmixed, W));
      expect(await read(dsteps)).toEqual(of(all.dsteps, STRIDE));
    }
  });

  test("a row over a state that is kept is that of the whole sequence, and the state moves on", async () => {
    const whole = await forward();
    const state = put(new Float32Array(lengths.length * N * P * S), lengths.length, N, P, S);
    const kept = { places: putInts(places, rows), state, capacity };
    const shorter = bounds.map((bound, i) => (i % 2 === 1 && !isPadding(i >> 1) ? bound - 1 : bound));
    // The last row of each sequence is padding here, after which the next sequence begins.
    for (const [i, length] of lengths.entries())
      if (length > 0) shorter.fill(starts[i]! + length - 1, 2 * (starts[i]! + length - 1), 2 * (starts[i]! + length));
    stateSpaceForward(device, { ...args, ...kept, bounds: putInts(shorter, rows, 2), out: empty(rows, N * P) });
    const last = lengths.flatMap((length, i) => (length > 0 ? [starts[i]! + length - 1] : []));
    const rowsOf = (values: Float32Array, width: number) => [
      ...last.flatMap((row) => [...values.subarray(row * width, (row + 1) * width)]),
      ...range(width).map(() => 1),
    ];
    const M = last.length + 1; // the last row has no place
    const out = empty(M, N * P);
    stateSpaceDecode(device, {
      ...args,
      ...kept,
      places: putInts([...last.map((row) => places[row]!), -1], M),
      mixed: put(rowsOf(mixed, W), M, W),
      steps: stepsOf(put(rowsOf(steps, STRIDE), M, STRIDE)),
      out,
    });
    const want = Float32Array.from([...rowsOf(whole, N * P).slice(0, -N * P), ...range(N * P).map(() => 0)]);
    expect(await read(out)).toEqual(want);
    const after = put(new Float32Array(lengths.length * N * P * S), lengths.length, N, P, S);
    stateSpaceForward(device, { ...args, ...kept, state: after, out: empty(rows, N * P) });
    const of = (values: Float32Array, i: number) => values.slice(slotOf(i) * N * P * S, (slotOf(i) + 1) * N * P * S);
    const [moved, wanted] = [await read(state), await read(after)];
    for (const i of range(lengths.length)) expect(of(moved, i)).toEqual(of(wanted, i));
  });
});

test("the norm of gated groups and its gradients", async () => {
  const [M, groups, D, STRIDE, EPS] = [9, 3, 11, 40, 1e-3];
  const width = groups * D;
  const rng = new Rng(8);
  const [x, gate, weight, dy] = [random(rng, M * width), random(rng, M * STRIDE), random(rng, width), random(rng, M * width)];
  const silu = (z: number) => z / (1 + Math.exp(-z));
  const reference = (x: Values, gate: Values) => {
    const gated = Float64Array.from(x, (value, at) => value * silu(gate[Math.floor(at / width) * STRIDE + (at % width)]!));
    return gated.map((value, at) => {
      const group = gated.subarray(at - (at % D), at - (at % D) + D);
      return (weight[at % width]! * value) / Math.sqrt(group.reduce((sum, of) => sum + of * of, 0) / D + EPS);
    });
  };
  const strided = (of: Tensor): Tensor => ({ ...of, shape: [M, width], stride: STRIDE });
  const args = { x: put(x, M, width), gate: strided(put(gate, M, STRIDE)), weight: put(weight, width), groups, eps: EPS };
  const y = empty(M, width);
  groupnormForward(device, { ...args, y });
  expect(distance(await read(y), reference(x, gate))).toBeLessThan(1e-6);
  const [dx, dgate] = [put(dy, M, width), put(new Float32Array(M * STRIDE), M, STRIDE)];
  groupnormBackward(device, { ...args, dy: dx, dx, dgate: strided(dgate) });
  const [gx, gg] = [await read(dx), await read(dgate)];
  for (const [tx, tg] of [
    [random(rng, x.length), gate.map(() => 0)],
    [x.map(() => 0), random(rng, gate.length)],
  ] as const) {
    const moved = (of: Values, by: Values, step: number) => Float64Array.from(of, (value, i) => value + step * by[i]!);
    const at = (step: number) => along(dy, reference(moved(x, tx, step), moved(gate, tg, step)));
    expect(Math.abs(along(gx, tx) + along(gg, tg) - (at(1e-5) - at(-1e-5)) / 2e-5)).toBeLessThan(1e-4);
  }
});

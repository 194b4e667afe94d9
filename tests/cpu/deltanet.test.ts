// The kernels of layers with the gated delta rule on the cpu device, against plain loops in float64 and finite differences of
// them: sequences shorter than the convolution, of a chunk, a token more, and of several chunks, packed with padding.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { Tensor } from "../../src/device/device.ts";
import { convolutionBackward, convolutionDecode, convolutionForward, convolutionKeep } from "../../src/ops/convolution.ts";
import { deltaBackward, deltaDecode, deltaForward } from "../../src/ops/deltanet.ts";
import { gatednormBackward, gatednormForward } from "../../src/ops/gatednorm.ts";
import { headsGate, headsGateBackward, headsJoin, headsSplit } from "../../src/ops/heads.ts";
import { along, distance, onCpu, packedRows, random, type Values } from "../helpers/recurrence.ts";

const { device, put, putInts, empty, read } = onCpu();

/** First row and length of each sequence, the rows of all, and the rows that belong to none. */
const LENGTHS = [2, 3, 64, 1, 65, 0, 150, 5];
const { starts, rows: ROWS, bounds: BOUNDS, isPadding, places: PLACES, slotOf, capacity: CAPACITY } = packedRows(LENGTHS);

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const silu = (x: number) => x * sigmoid(x);

describe.each(["without a bias", "with a bias"])("convolution %s", (of) => {
  const [C, T, STRIDE] = [37, 4, 50];
  const rng = new Rng(3);
  const [x, weight, dy] = [random(rng, ROWS * STRIDE), random(rng, C * T), random(rng, ROWS * C)];
  const bias = of === "with a bias" ? random(rng, C) : null;
  const reference = (x: Values): Float64Array =>
    Float64Array.from({ length: ROWS * C }, (_, at) => {
      const [m, c] = [Math.floor(at / C), at % C];
      const taps = range(T).map((t) => [m - T + 1 + t, t] as const);
      const seen = taps.filter(([row]) => row >= BOUNDS[2 * m]!);
      return isPadding(m)
        ? 0
        : silu(seen.reduce((sum, [row, t]) => sum + weight[c * T + t]! * x[row * STRIDE + c]!, bias?.[c] ?? 0));
    });
  const columns = (of: Tensor): Tensor => ({ ...of, shape: [ROWS, C], stride: STRIDE });
  const weights = { weight: put(weight, C, T), bias: bias && put(bias, C) };
  const args = { x: columns(put(x, ROWS, STRIDE)), ...weights, bounds: putInts(BOUNDS, ROWS, 2) };

  test("forward is the plain sum, and no row sees another sequence", async () => {
    const y = empty(ROWS, C);
    convolutionForward(device, { ...args, y });
    expect(distance(await read(y), reference(x))).toBeLessThan(1e-6);
  });

  test("the gradient is that of finite differences, 0 in padding, and other columns stay as they are", async () => {
    const whole = put(new Float32Array(ROWS * STRIDE).fill(7), ROWS, STRIDE);
    convolutionBackward(device, { ...args, dy: put(dy, ROWS, C), dx: columns(whole) });
    const got = await read(whole);
    const inside = got.map((value, i) => (i % STRIDE < C ? value : 0));
    for (const i of range(got.length).filter((i) => i % STRIDE >= C)) expect(got[i]).toBe(7);
    for (const row of range(ROWS).filter(isPadding))
      expect([...inside.subarray(row * STRIDE, row * STRIDE + C)]).toEqual(range(C).map(() => 0));
    for (const seed of range(3)) {
      const direction = random(new Rng(seed, 9), ROWS * STRIDE);
      const at = (step: number) => along(dy, reference(Float64Array.from(x, (value, i) => value + step * direction[i]!)));
      const numeric = (at(1e-4) - at(-1e-4)) / 2e-4;
      expect(Math.abs(along(inside, direction) - numeric)).toBeLessThan(
        1e-4 * Math.hypot(...inside) * Math.hypot(...direction) * 0.1,
      );
    }
  });

  test("a row over what is kept is that of the whole sequence", async () => {
    const window = empty(LENGTHS.length, T - 1, C);
    const whole = await (async () => {
      const y = empty(ROWS, C);
      convolutionForward(device, { ...args, y });
      return read(y);
    })();
    // What is kept of all but the last row of each sequence, then the last row.
    const shorter = BOUNDS.map((bound, i) => (i % 2 === 1 && !isPadding(i >> 1) ? bound - 1 : bound));
    for (const i of range(LENGTHS.length))
      if (LENGTHS[i]! === 1) device.zero({ ...window, ptr: window.ptr + 4 * slotOf(i) * (T - 1) * C, shape: [(T - 1) * C] });
    convolutionKeep(device, {
      ...args,
      bounds: putInts(shorter, ROWS, 2),
      places: putInts(PLACES, ROWS),
      window,
      capacity: CAPACITY,
    });
    const last = LENGTHS.map((length, i) => (length > 0 ? starts[i]! + length - 1 : -1));
    const rows = last.flatMap((row) => (row < 0 ? range(C).map(() => 1) : [...x.subarray(row * STRIDE, row * STRIDE + C)]));
    const places = putInts(
      last.map((row) => (row < 0 ? -1 : PLACES[row]!)),
      LENGTHS.length,
    );
    const y = empty(LENGTHS.length, C);
    convolutionDecode(device, { x: put(rows, LENGTHS.length, C), ...weights, places, window, y, capacity: CAPACITY });
    const got = await read(y);
    for (const [i, row] of last.entries())
      for (const c of range(C)) expect(got[i * C + c]!).toBeCloseTo(row < 0 ? 0 : whole[row * C + c]!, 5);
    const moved = (await read(window)).subarray(slotOf(6) * (T - 1) * C);
    const kept = range(T - 1).flatMap((t) => [
      ...x.subarray((last[6]! - T + 2 + t) * STRIDE, (last[6]! - T + 2 + t) * STRIDE + C),
    ]);
    expect([...moved.subarray(0, (T - 1) * C)]).toEqual(kept);
  });
});

describe("the delta rule", () => {
  const heads = { keyHeads: 2, valueHeads: 6, keyDim: 5, valueDim: 7 };
  const { keyHeads: P, valueHeads: N, keyDim: K, valueDim: V } = heads;
  const W = 2 * P * K + N * V;
  const rng = new Rng(5);
  const [mixed, gates, dout] = [random(rng, ROWS * W), random(rng, ROWS * 2 * N), random(rng, ROWS * N * V)];
  const [decay, bias] = [random(rng, N).map((value) => value - 3), random(rng, N)];

  /** The formulas of the contract, token by token, of sequences from `first` to `end` rows. */
  function reference(mixed: Values, gates: Values): Float64Array {
    const out = new Float64Array(ROWS * N * V);
    for (const [i, length] of LENGTHS.entries())
      for (const h of range(N)) {
        const state = range(K).map(() => new Float64Array(V));
        const p = Math.floor((h * P) / N);
        for (const m of range(length).map((t) => starts[i]! + t)) {
          const unit = (at: number) => {
            const x = [...mixed.subarray(m * W + at, m * W + at + K)];
            const by = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 1e-6));
            return x.map((value) => value * by);
          };
          const [q, k] = [unit(p * K).map((value) => value / Math.sqrt(K)), unit((P + p) * K)];
          const keeps = Math.exp(-Math.exp(decay[h]!) * Math.log1p(Math.exp(gates[m * 2 * N + N + h]! + bias[h]!)));
          const writes = sigmoid(gates[m * 2 * N + h]!);
          for (const row of state) for (const j of range(V)) row[j]! *= keeps;
          for (const j of range(V)) {
            const found = range(K).reduce((sum, a) => sum + k[a]! * state[a]![j]!, 0);
            const change = writes * (mixed[m * W + 2 * P * K + h * V + j]! - found);
            for (const a of range(K)) state[a]![j]! += k[a]! * change;
            out[(m * N + h) * V + j] = range(K).reduce((sum, a) => sum + q[a]! * state[a]![j]!, 0);
          }
        }
      }
    return out;
  }
  const args = {
    mixed: put(mixed, ROWS, W),
    decay: put(decay, N),
    bias: put(bias, N),
    bounds: putInts(BOUNDS, ROWS, 2),
    ...heads,
  };
  const forward = async () => {
    const out = empty(ROWS, N * V);
    deltaForward(device, { ...args, gates: put(gates, ROWS, 2 * N), out, state: null });
    return read(out);
  };

  test("forward is the rule, token by token", async () => {
    expect(distance(await forward(), reference(mixed, gates))).toBeLessThan(1e-6);
  });

  const parts: readonly (readonly [string, "mixed" | "gates", (column: number) => boolean])[] = [
    ["q", "mixed", (column) => column < P * K],
    ["k", "mixed", (column) => column >= P * K && column < 2 * P * K],
    ["v", "mixed", (column) => column >= 2 * P * K],
    ["b", "gates", (column) => column < N],
    ["a", "gates", (column) => column >= N],
  ];
  test.each(parts)(
    "the gradient of %s is that of finite differences, sequence by sequence, 0 in padding",
    async (part, of, isIn) => {
      const [dmixed, dgates] = [empty(ROWS, W), put(gates, ROWS, 2 * N)];
      deltaBackward(device, { ...args, gates: dgates, dout: put(dout, ROWS, N * V), dmixed });
      const width = of === "mixed" ? W : 2 * N;
      const got = (await read(of === "mixed" ? dmixed : dgates)).map((value, i) => (isIn(i % width) ? value : 0));
      for (const row of range(ROWS).filter(isPadding))
        expect(Math.hypot(...got.subarray(row * width, (row + 1) * width))).toBe(0);
      for (const [i, length] of LENGTHS.entries()) {
        if (length === 0) continue;
        const [from, to] = [starts[i]! * width, (starts[i]! + length) * width];
        const direction = random(new Rng(i, 77), ROWS * width).map((value, at) =>
          at >= from && at < to && isIn(at % width) ? value : 0,
        );
        const at = (step: number) => {
          const moved = Float64Array.from(of === "mixed" ? mixed : gates, (value, at) => value + step * direction[at]!);
          return along(dout, of === "mixed" ? reference(moved, gates) : reference(mixed, moved));
        };
        const numeric = (8 * (at(1e-3) - at(-1e-3)) - (at(2e-3) - at(-2e-3))) / 12e-3;
        const size = Math.hypot(...got.subarray(from, to)) * Math.hypot(...direction.subarray(from, to));
        if (part === "a" && length === 1) {
          expect([size, numeric]).toEqual([0, 0]); // before the first token there is nothing to keep
          continue;
        }
        expect(size).toBeGreaterThan(0);
        expect(Math.abs(along(got, direction) - numeric) / size, `${length} tokens`).toBeLessThan(1e-5);
      }
    },
  );

  test("a sequence is the same alone as among others, bit for bit", async () => {
    const whole = await forward();
    const [dmixed, dgates] = [empty(ROWS, W), put(gates, ROWS, 2 * N)];
    deltaBackward(device, { ...args, gates: dgates, dout: put(dout, ROWS, N * V), dmixed });
    const all = await read(dmixed);
    for (const [i, length] of LENGTHS.entries()) {
      if (length === 0) continue;
      const rows = (values: Float32Array, width: number) => values.slice(starts[i]! * width, (starts[i]! + length) * width);
      const alone = {
        ...args,
        mixed: put(rows(mixed, W), length, W),
        bounds: putInts(
          range(length).flatMap(() => [0, length]),
          length,
          2,
        ),
      };
      const [out, own] = [empty(length, N * V), empty(length, W)];
      deltaForward(device, { ...alone, gates: put(rows(gates, 2 * N), length, 2 * N), out, state: null });
      expect(await read(out)).toEqual(rows(whole, N * V));
      deltaBackward(device, {
        ...alone,
        gates: put(rows(gates, 2 * N), length, 2 * N),
        dout: put(rows(dout, N * V), length, N * V),
        dmixed: own,
      });
      expect(await read(own)).toEqual(rows(all, W));
    }
  });

  test("a row over a state that is kept is that of the whole sequence", async () => {
    const whole = await forward();
    const state = put(new Float32Array(LENGTHS.length * N * K * V), LENGTHS.length, N, K, V);
    const shorter = BOUNDS.map((bound, i) => (i % 2 === 1 && !isPadding(i >> 1) ? bound - 1 : bound));
    // The last row of each sequence is padding here, after which the next sequence begins.
    for (const [i, length] of LENGTHS.entries())
      if (length > 0) shorter.fill(starts[i]! + length - 1, 2 * (starts[i]! + length - 1), 2 * (starts[i]! + length));
    const kept = { places: putInts(PLACES, ROWS), state, capacity: CAPACITY };
    deltaForward(device, {
      ...args,
      gates: put(gates, ROWS, 2 * N),
      bounds: putInts(shorter, ROWS, 2),
      out: empty(ROWS, N * V),
      ...kept,
    });
    const last = LENGTHS.flatMap((length, i) => (length > 0 ? [starts[i]! + length - 1] : []));
    const rowsOf = (values: Float32Array, width: number) => [
      ...last.flatMap((row) => [...values.subarray(row * width, (row + 1) * width)]),
      ...range(width).map(() => 1),
    ];
    const M = last.length + 1; // the last row has no place
    const out = empty(M, N * V);
    const places = putInts([...last.map((row) => PLACES[row]!), -1], M);
    deltaDecode(device, {
      ...args,
      ...kept,
      places,
      mixed: put(rowsOf(mixed, W), M, W),
      gates: put(rowsOf(gates, 2 * N), M, 2 * N),
      out,
    });
    const got = await read(out);
    const want = Float32Array.from([...rowsOf(whole, N * V).slice(0, -N * V), ...range(N * V).map(() => 0)]);
    expect(distance(got, want)).toBeLessThan(1e-6);
    expect([...got.subarray(-N * V)]).toEqual(range(N * V).map(() => 0));
  });
});

test("the gated norm of each head and its gradients", async () => {
  const [M, H, D, STRIDE, EPS] = [9, 3, 11, 40, 1e-3];
  const rng = new Rng(8);
  const [x, gate, weight, dy] = [random(rng, M * H * D), random(rng, M * STRIDE), random(rng, D), random(rng, M * H * D)];
  const reference = (x: Values, gate: Values) =>
    Float64Array.from({ length: M * H * D }, (_, at) => {
      const [m, column] = [Math.floor(at / (H * D)), at % (H * D)];
      const head = x.subarray(at - (at % D), at - (at % D) + D);
      const rstd = 1 / Math.sqrt([...head].reduce((sum, value) => sum + value * value, 0) / D + EPS);
      return weight[at % D]! * x[at]! * rstd * silu(gate[m * STRIDE + column]!);
    });
  const strided = (of: Tensor): Tensor => ({ ...of, shape: [M, H * D], stride: STRIDE });
  const args = { x: put(x, M, H * D), gate: strided(put(gate, M, STRIDE)), weight: put(weight, D), eps: EPS };
  const y = empty(M, H * D);
  gatednormForward(device, { ...args, y });
  expect(distance(await read(y), reference(x, gate))).toBeLessThan(1e-6);
  const [dx, dgate] = [put(dy, M, H * D), put(new Float32Array(M * STRIDE), M, STRIDE)];
  gatednormBackward(device, { ...args, dy: dx, dx, dgate: strided(dgate) });
  const [gx, gg] = [await read(dx), await read(dgate)];
  const [tx, tg] = [random(rng, x.length), random(rng, gate.length)];
  const at = (step: number) =>
    along(
      dy,
      reference(
        Float64Array.from(x, (value, i) => value + step * tx[i]!),
        Float64Array.from(gate, (value, i) => value + step * tg[i]!),
      ),
    );
  expect(Math.abs(along(gx, tx) + along(gg, tg) - (at(1e-5) - at(-1e-5)) / 2e-5)).toBeLessThan(1e-4);
});

test("heads with gates: parted, joined and gated", async () => {
  const [M, heads, kvHeads, headDim] = [5, 3, 2, 4];
  const of = { heads, kvHeads, headDim };
  const [G, W, O] = [2 * (heads + kvHeads) * headDim, (heads + 2 * kvHeads) * headDim, heads * headDim];
  const rng = new Rng(2);
  const [gated, x, dy] = [random(rng, M * G), random(rng, M * O), random(rng, M * O)];
  const columns = [
    ...range(heads).flatMap((h) => range(headDim).map((d) => 2 * h * headDim + d)),
    ...range(2 * kvHeads * headDim).map((c) => 2 * O + c),
  ];
  const gateColumns = range(heads).flatMap((h) => range(headDim).map((d) => (2 * h + 1) * headDim + d));
  const y = empty(M, W);
  headsSplit(device, { gated: put(gated, M, G), y, ...of });
  const parted = await read(y);
  expect([...parted]).toEqual(range(M).flatMap((m) => columns.map((c) => gated[m * G + c]!)));
  const joined = put(new Float32Array(M * G).fill(9), M, G);
  headsJoin(device, { dy: y, dgated: joined, ...of });
  expect([...(await read(joined))]).toEqual(range(M * G).map((i) => (columns.includes(i % G) ? gated[i]! : 9)));
  const out = empty(M, O);
  headsGate(device, { x: put(x, M, O), gated: put(gated, M, G), y: out, ...of });
  const gateAt = (i: number) => Math.floor(i / O) * G + gateColumns[i % O]!;
  expect(
    distance(
      await read(out),
      x.map((value, i) => value * sigmoid(gated[gateAt(i)]!)),
    ),
  ).toBeLessThan(1e-6);
  const [dx, over] = [put(dy, M, O), put(gated, M, G)];
  headsGateBackward(device, { dy: dx, x: put(x, M, O), gated: over, dx, ...of });
  const [gx, gg] = [await read(dx), await read(over)];
  expect(
    distance(
      gx,
      dy.map((value, i) => value * sigmoid(gated[gateAt(i)]!)),
    ),
  ).toBeLessThan(1e-6);
  const want = gated.slice();
  for (const i of range(M * O)) {
    const s = sigmoid(gated[gateAt(i)]!);
    want[gateAt(i)] = dy[i]! * x[i]! * s * (1 - s);
  }
  expect(distance(gg, want)).toBeLessThan(1e-6);
});

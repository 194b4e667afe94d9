// The short convolution on the cpu device, against plain loops in float64 and finite differences of them: sequences shorter
// than the convolution, as long, and longer, packed with padding.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { shortconvBackward, shortconvDecode, shortconvForward, shortconvKeep } from "../../src/ops/shortconv.ts";
import { along, distance, onCpu, packedRows, random, type Values } from "../helpers/recurrence.ts";

const { device, put, putInts, empty, read } = onCpu();
const { lengths, starts, rows, bounds, isPadding, places, slotOf, capacity } = packedRows([2, 3, 1, 0, 17, 5]);
const [C, T] = [37, 3];
const rng = new Rng(4);
const [bcx, weight, dy] = [random(rng, rows * 3 * C), random(rng, C * T), random(rng, rows * C)];

const part = (of: Values, row: number, index: number, c: number) => of[row * 3 * C + index * C + c]!;
/** b x of a row. */
const gated = (of: Values, row: number, c: number) => part(of, row, 0, c) * part(of, row, 2, c);
const reference = (of: Values): Float64Array =>
  Float64Array.from({ length: rows * C }, (_, at) => {
    const [m, c] = [Math.floor(at / C), at % C];
    const seen = range(T).filter((t) => m - T + 1 + t >= bounds[2 * m]!);
    const sum = seen.reduce((sum, t) => sum + weight[c * T + t]! * gated(of, m - T + 1 + t, c), 0);
    return isPadding(m) ? 0 : part(of, m, 1, c) * sum;
  });
const args = { bcx: put(bcx, rows, 3 * C), weight: put(weight, C, T), bounds: putInts(bounds, rows, 2) };
const forward = async () => {
  const y = empty(rows, C);
  shortconvForward(device, { ...args, y });
  return read(y);
};

test("forward is the plain sum, and no row sees another sequence", async () => {
  expect(distance(await forward(), reference(bcx))).toBeLessThan(1e-6);
});

describe("the gradient is that of finite differences, sequence by sequence, 0 in padding", () => {
  test.each(["b", "c", "x"].map((name, index) => [name, index] as const))("of %s", async (_, index) => {
    const dbcx = empty(rows, 3 * C);
    shortconvBackward(device, { ...args, dy: put(dy, rows, C), dbcx });
    const isIn = (at: number) => Math.floor((at % (3 * C)) / C) === index;
    const got = (await read(dbcx)).map((value, at) => (isIn(at) ? value : 0));
    for (const row of range(rows).filter(isPadding))
      expect(Math.hypot(...got.subarray(row * 3 * C, (row + 1) * 3 * C))).toBe(0);
    for (const [i, length] of lengths.entries()) {
      if (length === 0) continue;
      const [from, to] = [starts[i]! * 3 * C, (starts[i]! + length) * 3 * C];
      const direction = random(new Rng(i, 5), bcx.length).map((value, at) => (at >= from && at < to && isIn(at) ? value : 0));
      const at = (step: number) => along(dy, reference(Float64Array.from(bcx, (value, i) => value + step * direction[i]!)));
      const numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
      const size = Math.hypot(...got.subarray(from, to)) * Math.hypot(...direction.subarray(from, to));
      expect(size).toBeGreaterThan(0);
      expect(Math.abs(along(got, direction) - numeric) / size, `${length} tokens`).toBeLessThan(1e-6);
    }
  });
});

test("a row over what is kept is that of the whole sequence, and what is kept moves on", async () => {
  const whole = await forward();
  const window = empty(lengths.length, T - 1, C);
  // What is kept of all but the last row of each sequence, then the last row.
  const shorter = bounds.map((bound, i) => (i % 2 === 1 && !isPadding(i >> 1) ? bound - 1 : bound));
  for (const [i, length] of lengths.entries())
    if (length === 1) device.zero({ ...window, ptr: window.ptr + 4 * slotOf(i) * (T - 1) * C, shape: [(T - 1) * C] });
  const kept = { places: putInts(places, rows), window, capacity };
  shortconvKeep(device, { ...args, bounds: putInts(shorter, rows, 2), ...kept });
  const last = lengths.map((length, i) => (length > 0 ? starts[i]! + length - 1 : -1));
  const rowOf = (row: number) => [...bcx.subarray(row * 3 * C, (row + 1) * 3 * C)];
  const N = last.length;
  const given = put(
    last.flatMap((row) => (row < 0 ? range(3 * C).map(() => 1) : rowOf(row))),
    N,
    3 * C,
  );
  const at = putInts(
    last.map((row) => (row < 0 ? -1 : places[row]!)),
    N,
  );
  const y = empty(N, C);
  shortconvDecode(device, { ...kept, bcx: given, weight: args.weight, places: at, y });
  const got = await read(y);
  for (const [i, row] of last.entries())
    for (const c of range(C)) expect(got[i * C + c]!).toBeCloseTo(row < 0 ? 0 : whole[row * C + c]!, 5);
  const moved = (await read(window)).subarray(slotOf(4) * (T - 1) * C, (slotOf(4) + 1) * (T - 1) * C);
  const wanted = range(T - 1).flatMap((t) => range(C).map((c) => Math.fround(gated(bcx, last[4]! - T + 2 + t, c))));
  expect([...moved]).toEqual(wanted);
});

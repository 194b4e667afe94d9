// Heads of attention over latents on the cpu device: features go where attention reads them, and gradients back, the shared
// key's as a sum; what no head has is 0.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import { headsNarrow, latentHeadsBackward, latentHeadsForward } from "../../src/ops/latent.ts";
import { onCpu, random } from "../helpers/recurrence.ts";

const { device, put, empty, read } = onCpu();
const [M, Q, D, N, R, U, S] = [19, 3, 13, 5, 6, 9, 11];
const rng = new Rng(6);
const given = {
  queries: random(rng, M * Q * (N + R)),
  keys: random(rng, M * Q * (N + U)),
  shared: random(rng, M * S),
};

describe.each([true, false])("rotated features next to each other: %p", (isInterleaved) => {
  const of = { heads: Q, headDim: D, plain: N, rotated: R, value: U, isInterleaved };
  /** The rotated feature that comes to place `f`: pairs become halves. */
  const turned = (f: number) => (isInterleaved ? (f < R / 2 ? 2 * f : 2 * (f - R / 2) + 1) : f);
  /** Where column `i` of a row of q, k and v is of: the value, and the column of its row; null for zeros. */
  function sourceOf(i: number): readonly ["queries" | "keys" | "shared", number] | null {
    const [part, head, f] = [Math.floor(i / (Q * D)), Math.floor(i / D) % Q, i % D];
    if (part === 2) return f < U ? ["keys", head * (N + U) + N + f] : null;
    if (f >= R + N) return null;
    if (part === 0) return ["queries", head * (N + R) + (f < R ? N + turned(f) : f - R)];
    return f < R ? ["shared", S - R + turned(f)] : ["keys", head * (N + U) + f - R];
  }
  const widths = { queries: Q * (N + R), keys: Q * (N + U), shared: S };

  test("each feature is where attention reads it", async () => {
    const qkv = empty(M, 3 * Q * D);
    const { queries, keys, shared } = given;
    const args = { queries: put(queries, M, widths.queries), keys: put(keys, M, widths.keys), shared: put(shared, M, S) };
    latentHeadsForward(device, { ...args, qkv, ...of });
    const wanted = range(M).flatMap((m) =>
      range(3 * Q * D).map((i) => {
        const source = sourceOf(i);
        return source === null ? 0 : given[source[0]][m * widths[source[0]] + source[1]]!;
      }),
    );
    expect([...(await read(qkv))]).toEqual(wanted.map(Math.fround));
  });

  test("each gradient is the sum of those of its places, and other columns of the shared value stay", async () => {
    const d = random(rng, M * 3 * Q * D);
    const [dqueries, dkeys] = [empty(M, widths.queries), empty(M, widths.keys)];
    const dshared = put(given.shared, M, S);
    latentHeadsBackward(device, { dqkv: put(d, M, 3 * Q * D), dqueries, dkeys, dshared, ...of });
    const found = { queries: await read(dqueries), keys: await read(dkeys), shared: await read(dshared) };
    const places = Map.groupBy(range(3 * Q * D), (i) => sourceOf(i)?.join() ?? "");
    for (const [name, width] of Object.entries(widths) as [keyof typeof widths, number][])
      for (const m of range(M))
        for (const column of range(width)) {
          const at = places.get(`${name},${column}`);
          if (!at) expect(found[name][m * width + column]).toBe(given.shared[m * width + column]!);
          else expect(found[name][m * width + column]!).toBeCloseTo(sum(at.map((i) => d[m * 3 * Q * D + i]!)), 5);
        }
  });
});

test.each([
  [13, 9],
  [9, 13],
  [9, 9],
])("of heads of %i features %i are kept", async (has, keeps) => {
  const x = random(rng, M * Q * has);
  const y = empty(M, Q * keeps);
  headsNarrow(device, { from: put(x, M, Q * has), to: y, heads: Q });
  const wanted = range(M * Q * keeps).map((i) => (i % keeps < has ? x[Math.floor(i / keeps) * has + (i % keeps)]! : 0));
  expect([...(await read(y))]).toEqual(wanted.map(Math.fround));
});

// What the kernels of recurrences on GPUs leave each other in scratch: room for each tensor of the shapes at the top of
// kernels/triton/deltanet.py and statespace.py, aligned, and none within another.

import { expect, test } from "bun:test";
import { bytesOf } from "../../src/base/dtype.ts";
import { Rng } from "../../src/base/rng.ts";
import { sizeOf } from "../../src/base/shape.ts";
import { type DeltaSizes, deltaScratch, type MambaSizes, spaceParts, spaceScratch } from "../../src/device/scratch.ts";

type Shapes = Readonly<Record<string, readonly [dtype: "f32" | "bf16", ...shape: number[]]>>;

function expectRoom(
  { parts, bytes }: { readonly parts: Readonly<Record<string, number>>; readonly bytes: number },
  shapes: Shapes,
) {
  expect(Object.keys(parts).sort()).toEqual(Object.keys(shapes).sort());
  const ends = Object.entries(parts).sort(([, a], [, b]) => a - b);
  for (const [i, [name, begin]] of ends.entries()) {
    const [dtype, ...shape] = shapes[name]!;
    const room = (ends[i + 1]?.[1] ?? bytes) - begin;
    expect(room, name).toBeGreaterThanOrEqual(sizeOf(shape) * bytesOf(dtype));
    expect(room, name).toBeLessThan(sizeOf(shape) * bytesOf(dtype) + 256);
    expect(begin % 16, name).toBe(0);
  }
}

test("of the gated delta rule", () => {
  const rng = new Rng(71);
  for (const c of ["f32", "bf16"] as const)
    for (let i = 0; i < 20; i++) {
      const [keyHeads, keyDim, valueDim, M] = [1 + rng.below(4), 16 + rng.below(112), 16 + rng.below(112), 1 + rng.below(700)];
      const of: DeltaSizes = { keyHeads, valueHeads: keyHeads * (1 + rng.below(3)), keyDim, valueDim };
      const [N, states] = [of.valueHeads, [Math.ceil(M / 64), of.valueHeads, valueDim, keyDim]];
      expectRoom(deltaScratch(c, of, M), {
        vectors: ["f32", 12, N, M],
        t: [c, M, N, 64],
        p: [c, M, N, 64],
        n: [c, M, N, valueDim],
        before: [c, ...states],
        after: [c, ...states],
        dqk: [c, 2, M, N, keyDim],
      });
    }
});

test("of Mamba 2", () => {
  const rng = new Rng(72);
  for (const c of ["f32", "bf16"] as const)
    for (let i = 0; i < 20; i++) {
      const [groups, headDim, stateDim, M] = [1 + rng.below(4), 8 + rng.below(64), 8 + rng.below(120), 1 + rng.below(700)];
      const of: MambaSizes = { heads: groups * (1 + rng.below(30)), groups, headDim, stateDim };
      const states = [Math.ceil(M / 64), of.heads, headDim, stateDim];
      expect(spaceParts(of)).toBe(Math.ceil(of.heads / groups / 8));
      expectRoom(spaceScratch(c, of, M), {
        vectors: ["f32", 2, of.heads, M],
        scores: ["f32", M, groups, 64],
        before: [c, ...states],
        after: [c, ...states],
        sums: ["f32", spaceParts(of), M, 2, groups, stateDim],
      });
    }
});

// VeRA's frozen random projections (Kopiczko et al. 2024): one A [rank, widest input] and one B [widest output, rank] for
// all linears that an adapter targets, of which each reads the corner that it needs; never stored, but drawn where they are
// needed.
//
// Uniform within +-sqrt(6 / fan in), as PEFT draws them (Kaiming); element i is a hash of the seed and i, the same on every
// device. PEFT's own generator is PyTorch's, so files carry the projections themselves.

import { mix } from "../base/rng.ts";
import { maxOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type Linear, linearShapes } from "../families/linears.ts";

export type Projection = {
  readonly rank: number;
  /** The widest input and output. */
  readonly width: number;
  readonly height: number;
  readonly a: Draw;
  readonly b: Draw;
};

/** Element i is ((mix(key ^ i) >> 8) 2^-23 - 1) bound, rounded once. */
export type Draw = { readonly key: number; readonly bound: number };

export function projectionOf(spec: ModelSpec, targets: readonly Linear[], rank: number, seed: number): Projection {
  const shapes = targets.flatMap((linear) => linearShapes(spec, linear));
  const width = maxOf(shapes.map((shape) => shape.in));
  const key = mix(mix(seed) ^ 1);
  const draw = (key: number, fanIn: number): Draw => ({ key, bound: Math.fround(Math.sqrt(6 / fanIn)) });
  // The highest bit, which no index has, tells B from A: so no element of one is an element of the other.
  const [a, b] = [draw(key, width), draw((key ^ 0x80000000) >>> 0, rank)];
  return { rank, width, height: maxOf(shapes.map(({ out }) => out)), a, b };
}

/** The first elements of a draw, in the order of a matrix's rows. */
export function drawn({ key, bound }: Draw, count: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = ((mix(key ^ i) >>> 8) / 2 ** 23 - 1) * bound;
  return values;
}

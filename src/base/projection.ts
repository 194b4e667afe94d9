// VeRA's frozen random projections (Kopiczko et al. 2024): one A [rank, widest input] and one B [widest output, rank] for all linears
// that an adapter targets, of which each reads the corner that it needs; never stored, but drawn where they are needed.
//
// Uniform within +-sqrt(6 / fan in), as PEFT draws them (Kaiming); element i is a hash of the seed and i, the same on every device. PEFT's
// own generator is PyTorch's, so files carry the projections themselves.

import { mix } from "./rng.ts";
import { maxOf } from "./shape.ts";
import { type Linear, linearShape, type ModelSpec } from "./spec.ts";

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
  const shapes = targets.map((linear) => linearShape(spec, linear));
  const width = maxOf(shapes.map((shape) => shape.in));
  const draw = (side: number, fanIn: number): Draw => ({
    key: mix(mix(seed) ^ side),
    bound: Math.fround(Math.sqrt(6 / fanIn)),
  });
  return { rank, width, height: maxOf(shapes.map(({ out }) => out)), a: draw(1, width), b: draw(2, rank) };
}

/** The first elements of a draw, in the order of a matrix's rows. */
export function drawn({ key, bound }: Draw, count: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = ((mix(key ^ i) >>> 8) / 2 ** 23 - 1) * bound;
  return values;
}

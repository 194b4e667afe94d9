// Experts in MXFP4 (OCP), as gpt-oss was released: of each weight [E, out, in] codes of e2m1, `NAME_blocks`
// u8[E, out, in / 32, 16], two to a byte, the first in the low half, and powers of two, `NAME_scales` u8[E, out, in / 32].

import { sizeOf } from "../../base/shape.ts";
import { codes4Values } from "../stored.ts";
import { decoder, type ModelTensor, type Mxfp4Parts, scratch } from "../tensor.ts";
import type { RawTensor } from "./raw.ts";

const [BLOCKS, SCALES] = ["_blocks", "_scales"];
/** Values of a block, which share a scale. */
const BLOCK = 32;
const POSITIVE = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const BOOK = Float32Array.from([...POSITIVE, ...POSITIVE.map((value) => -value)]);

/** Replaces codes and scales by the weights that they are. */
export function readMxfp4(tensors: Map<string, ModelTensor>, raw: ReadonlyMap<string, RawTensor>): void {
  for (const [name, codes] of raw) {
    if (!name.endsWith(BLOCKS!) || codes.type !== "U8") continue;
    const weight = name.slice(0, -BLOCKS!.length);
    tensors.delete(name);
    tensors.delete(weight + SCALES!);
    tensors.set(weight, tensorOf(codes, raw.get(weight + SCALES!)));
  }
}

function tensorOf(codes: RawTensor, scales: RawTensor | undefined): ModelTensor {
  const [experts = 0, rows = 0, blocks = 0, bytes = 0] = codes.shape;
  const shape = [experts, rows, blocks * BLOCK];
  const of = { type: "MXFP4", dtype: "f32", shape, nf4: null } as const;
  const fault = faultOf(codes, scales, bytes);
  if (fault !== null || !scales) return { ...of, fault, read: () => undefined };
  const parts: Mxfp4Parts = { readCodes: codes.read, readScales: scales.read };
  const read = decoder(sizeOf(shape), BLOCK, (first, count, as, into) => {
    const held = scratch(count / 2 + count / BLOCK);
    const [own, powers] = [held.subarray(0, count / 2), held.subarray(count / 2)];
    codes.read(own, first / 2);
    scales.read(powers, first / BLOCK);
    for (let i = 0; i < own.length; i++) own[i] = (own[i]! << 4) | (own[i]! >> 4);
    const absmax = Float32Array.from(powers, (power) => (power === 255 ? Number.NaN : 2 ** (power - 127)));
    codes4Values(own, { book: BOOK, absmax, block: BLOCK }, 0, count, as, into);
  });
  return { ...of, fault: null, read, mxfp4: parts };
}

function faultOf({ shape }: RawTensor, scales: RawTensor | undefined, bytes: number): string | null {
  if (shape.length !== 4 || bytes !== BLOCK / 2) return `has codes [${shape}], expected [experts, out, in / 32, 16]`;
  if (!scales) return "has codes without scales";
  const expected = shape.slice(0, 3);
  if (scales.type !== "U8" || `${scales.shape}` !== `${expected}`)
    return `has scales of ${scales.type} [${scales.shape}], expected U8 [${expected}]`;
  return null;
}

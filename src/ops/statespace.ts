// The recurrence of Mamba 2 within packed sequences (Dao and Gu 2024): attention whose keys write to a state that decays, in
// place of a cache that grows.
//
// Of head h a token has the step s = ln(1 + e^(dt + bias[h])), at least `least` and at most `most`, keeps e^(-e^decay[h] s) of
// the head's state H f32[P, S], writes its value x at B, and reads the state at C:
//   H = e^(-e^decay[h] s) H + s x B^T,  out = H C + skip[h] x.
// H is 0 before a sequence.
//
// mixed c[M, N P + 2 G S]: x of N heads, then B and C of G groups, and head h reads those of group floor(h G / N). steps
// c[M, N], strided: dt. decay, bias, skip f32[N]. bounds as attention_forward has them; padding rows have out 0, no gradient.

import { base, F, I, L, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import type { Host } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { type MambaSizes, stateSpaceRoom } from "../device/scratch.ts";
import { sequencesOf } from "./attention.ts";
import { dim, onCpuAlone, op, strideOf } from "./op.ts";

const c = native({
  statespace_forward: { args: [P, P, L, P, P, P, P, I, P, P, I, P, P, L, I, I, I, I, F, F], returns: "void" },
  statespace_backward: { args: [P, P, P, L, P, P, P, P, I, P, I, P, P, L, P, L, I, I, I, I, F, F], returns: "void" },
  statespace_decode: { args: [P, P, L, P, P, P, P, P, I, P, I, I, I, I, I, F, F], returns: "void" },
});

/** The limits of a step; `most` null: none. */
export type StepLimits = { readonly least: number; readonly most: number | null };

type Shared = MambaSizes &
  StepLimits & {
    readonly mixed: Tensor;
    readonly steps: Tensor;
    readonly decay: Tensor;
    readonly bias: Tensor;
    readonly skip: Tensor;
  };
/** The states of sequences that are kept: places i32[M] as cache_write has them, of `capacity` rows each. */
type Kept = { readonly places: Tensor; readonly state: Tensor; readonly capacity: number };

const known = ({ heads, headDim, groups, stateDim }: MambaSizes) => ({
  W: heads * headDim + 2 * groups * stateDim,
  ...{ N: heads, P: headDim, S: stateDim, O: heads * headDim },
});
const shared = { mixed: "c M W", steps: "c M N", decay: "f32 N", bias: "f32 N", skip: "f32 N" };
const inputsOf = ({ mixed, steps, decay, bias, skip }: Shared) =>
  [mixed.ptr, steps.ptr, strideOf(steps), decay.ptr, bias.ptr, skip.ptr] as const;
const sizesOf = ({ heads, headDim, groups, stateDim, least, most }: Shared) =>
  [heads, headDim, groups, stateDim, least, most ?? Number.POSITIVE_INFINITY] as const;

/** Scratch of each thread, and how much of it, for sequences of up to `tokens`. */
function roomOf(host: Host, sizes: MambaSizes, tokens: number): readonly [ptr: number, floats: number] {
  const room = stateSpaceRoom(sizes, tokens);
  return [host.scratch(host.threads * room * 4), room];
}

/** out c[M, N P]; with `state` f32[K, N, P, S] that after each sequence goes there, at places / capacity of its last row. */
export const stateSpaceForward = op<Shared & { bounds: Tensor; out: Tensor } & (Kept | { state: null })>(
  "statespace_forward",
  { ...shared, bounds: "i32 M 2", out: "c M O", places: "i32 M", state: "f32 K N P S" },
  {
    known,
    cpu: (of, host) => {
      const { table, count } = sequencesOf(of.bounds);
      base.native_zero(of.out.ptr, sizeOf(of.out.shape) * bytesOf(of.out.dtype));
      const [places, state, capacity] = of.state ? [of.places.ptr, of.state.ptr, of.capacity] : [null, null, 1];
      const kept = [places, state, capacity, of.out.ptr, ...roomOf(host, of, 0)] as const;
      c.statespace_forward(...inputsOf(of), table, count, ...kept, ...sizesOf(of));
    },
    cuda: onCpuAlone("Mamba layers"),
  },
);

/** dmixed c[M, W] and dsteps c[M, N], strided, from dout c[M, N P]. */
export const stateSpaceBackward = op<Shared & { bounds: Tensor; dout: Tensor; dmixed: Tensor; dsteps: Tensor }>(
  "statespace_backward",
  { ...shared, bounds: "i32 M 2", dout: "c M O", dmixed: "c M W", dsteps: "c M N" },
  {
    known,
    cpu: (of, host) => {
      const { table, count, longest } = sequencesOf(of.bounds);
      const rows = [of.bounds.ptr, dim(of.mixed, 0), table, count] as const;
      const out = [of.dmixed.ptr, of.dsteps.ptr, strideOf(of.dsteps), ...roomOf(host, of, longest)] as const;
      c.statespace_backward(of.dout.ptr, ...inputsOf(of), ...rows, ...out, ...sizesOf(of));
    },
    cuda: onCpuAlone("Mamba layers"),
  },
);

/** A row of each sequence: out, from its state, which moves on by the row; 0 without a place. */
export const stateSpaceDecode = op<Shared & Kept & { out: Tensor }>(
  "statespace_decode",
  { ...shared, out: "c M O", places: "i32 M", state: "f32 K N P S" },
  {
    known,
    cpu: (of) => {
      const { places, state, capacity, out, mixed } = of;
      c.statespace_decode(...inputsOf(of), places.ptr, state.ptr, capacity, out.ptr, dim(mixed, 0), ...sizesOf(of));
    },
    cuda: onCpuAlone("Mamba layers"),
  },
);

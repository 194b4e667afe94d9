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
import { RequestError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import type { Host } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { headParts, type MambaSizes, partsRoom, spaceParts, spaceScratch, stateSpaceRoom } from "../device/scratch.ts";
import { sequencesOf } from "./attention.ts";
import { cdiv, dim, op, strideOf } from "./op.ts";

const c = native({
  statespace_forward: { args: [P, P, L, P, P, P, P, I, P, P, I, P, P, L, I, I, I, I, F, F], returns: "void" },
  statespace_backward: { args: [P, P, P, L, P, P, P, P, I, P, I, P, P, L, P, L, P, I, I, I, I, I, F, F], returns: "void" },
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

/** Scratch of each thread, and how much of it. */
function roomOf(host: Host, sizes: MambaSizes): readonly [ptr: number, floats: number] {
  const room = stateSpaceRoom(sizes, 0);
  return [host.scratch(host.threads * room * 4), room];
}

const TILE = 64; // rows of a chunk, and of a program of a GPU

/** The variant for heads and states of these sizes, or the first that masks what they have not. */
function variant(gpu: Launcher, name: string, { headDim: P, stateDim: S }: MambaSizes): Variant {
  const all = gpu.variants(name);
  const fits = (kernel: Variant) => {
    const [values, places] = [kernel.constant("PD"), kernel.constant("SD")];
    if (kernel.constant("EXACT") === 1) return P === values && S === places;
    return P <= values && S <= places && (places <= 32 || (P % 8 === 0 && S % 8 === 0));
  };
  const found = all.find(fits);
  if (found) return found;
  const sizes = all.map(
    (kernel) => `${kernel.constant("EXACT") === 1 ? "" : "up to "}${kernel.constant("PD")} and ${kernel.constant("SD")}`,
  );
  throw new RequestError(
    "device.heads",
    `the base model has Mamba layers with heads of ${P} and states of ${S}; in ${gpu.compute} on this GPU they were compiled for ${sizes.join(", ")}, in multiples of 8`,
    'set device to "cpu"',
  );
}

/** Sizes as kernels of GPUs call them, and the rest of what they read. */
function argumentsFor({ mixed, steps, decay, bias, skip, heads, headDim: P, groups, stateDim: S, least, most }: Shared) {
  const limits = { least, most: most ?? Number.POSITIVE_INFINITY };
  return { mixed, steps, decay, bias, skip, heads, groups, P, S, stride: strideOf(steps), ...limits };
}

/** What forward and backward share: what the steps come to, the products of B and C, and the states before chunks. */
function scanned(gpu: Launcher, of: Shared & { readonly bounds: Tensor }, kept: Kept | null) {
  const { headDim: P, stateDim: S, heads, groups } = of;
  const M = dim(of.mixed, 0);
  const { parts, bytes } = spaceScratch(gpu.compute, of, M);
  const ptr = gpu.scratch(bytes);
  const part = (name: keyof typeof parts, dtype: "f32" | "bf16"): Tensor => ({ ptr: ptr + parts[name], dtype, shape: [1] });
  const made = { vectors: part("vectors", "f32"), scores: part("scores", "f32"), states: part("before", gpu.compute) };
  const args = { ...argumentsFor(of), ...made, bounds: of.bounds, M };
  const tiles = cdiv(M, TILE);
  const [first, scan] = [gpu.kernel("space_steps"), variant(gpu, "space_scan", of)];
  const along = (kernel: Variant) => [tiles, heads, cdiv(P, kernel.constant("BP")) * cdiv(S, kernel.constant("BS"))] as const;
  gpu.launch(first, [tiles, cdiv(heads, first.constant("BH"))], args);
  gpu.launch(variant(gpu, "space_scores", of), [tiles, groups], args);
  const { places = null, state = null, capacity = 0 } = kept ?? {};
  gpu.launch(scan, along(scan), { ...args, places, state, capacity });
  return { args, along, tiles, part };
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
      const kept = [places, state, capacity, of.out.ptr, ...roomOf(host, of)] as const;
      c.statespace_forward(...inputsOf(of), table, count, ...kept, ...sizesOf(of));
    },
    cuda: (of, gpu) => {
      const { args, tiles } = scanned(gpu, of, of.state ? of : null);
      gpu.launch(variant(gpu, "space_out", of), [tiles, of.heads], { ...args, out: of.out });
    },
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
      const room = stateSpaceRoom(of, longest);
      const scratch = host.scratch(4 * (host.threads * room + partsRoom(of, dim(of.mixed, 0))));
      const parts = [scratch + 4 * host.threads * room, headParts(of)] as const;
      const out = [of.dmixed.ptr, of.dsteps.ptr, strideOf(of.dsteps), scratch, room, ...parts] as const;
      c.statespace_backward(of.dout.ptr, ...inputsOf(of), ...rows, ...out, ...sizesOf(of));
    },
    cuda: (of, gpu) => {
      const { args: made, along, tiles, part } = scanned(gpu, of, null);
      const { dout, dmixed, dsteps, heads, groups, stateDim: S } = of;
      const [after, sums] = [part("after", gpu.compute), part("sums", "f32")];
      const args = { ...made, dout, dmixed, dsteps, before: made.states, after, sums, out_stride: strideOf(dsteps) };
      const [back, keys] = [variant(gpu, "space_scan_backward", of), variant(gpu, "space_keys_backward", of)];
      gpu.launch(back, along(back), args);
      gpu.launch(variant(gpu, "space_values_backward", of), [tiles, heads], args);
      const parts = spaceParts(of);
      gpu.launch(keys, [tiles, groups * parts, cdiv(S, keys.constant("BS"))], args);
      const sum = gpu.kernel("space_sum_backward");
      const [inner, width] = [dim(dout, 1), dim(dmixed, 1)];
      const grid = [cdiv(made.M, sum.constant("BM")), cdiv(width - inner, sum.constant("BLOCK"))] as const;
      gpu.launch(sum, grid, { bounds: of.bounds, sums, dmixed, M: made.M, parts, inner, width });
    },
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
    cuda: (of, gpu) => {
      const { places, state, out, capacity, heads, headDim: P, mixed } = of;
      const kernel = variant(gpu, "space_decode", of);
      const grid = [dim(mixed, 0), heads, cdiv(P, kernel.constant("BP"))] as const;
      gpu.launch(kernel, grid, { ...argumentsFor(of), places, state, out, capacity });
    },
  },
);

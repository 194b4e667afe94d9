// The gated delta rule within packed sequences (Gated DeltaNet, Yang et al. 2024): attention whose keys write to a state that
// decays, in place of a cache that grows.
//
// Of value head h a token keeps e^g of the head's state S f32[K, V], g = -e^decay[h] ln(1 + e^(a + bias[h])), then writes to it
// at its key, by the share beta = sigmoid(b), what its value differs from what the key finds, and reads the state at its query:
//   S = e^g S,  S = S + k (beta (v - S^T k))^T,  out = S^T q.
// q and k have length 1, x / sqrt(sum(x^2) + 1e-6), and q is divided by sqrt(K). S is 0 before a sequence.
//
// mixed c[M, 2 P K + N V]: P heads of q and of k, N of v, and value head h reads key head floor(h P / N). gates c[M, 2 N]: b of
// each head, then a. decay, bias f32[N]. bounds as attention_forward has them; padding rows have out 0 and no gradient.

import { base, I, L, native, P } from "../../ffi/native.ts";
import { bytesOf } from "../base/dtype.ts";
import { RequestError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import type { Host } from "../device/cpu/host.ts";
import type { Launcher } from "../device/cuda/launcher.ts";
import type { Variant } from "../device/cuda/variants.ts";
import type { Tensor } from "../device/device.ts";
import { type DeltaSizes, deltaRoom, deltaScratch } from "../device/scratch.ts";
import { sequencesOf } from "./attention.ts";
import { cdiv, dim, op } from "./op.ts";

const c = native({
  delta_forward: { args: [P, P, P, P, P, I, P, P, I, P, P, L, I, I, I, I], returns: "void" },
  delta_backward: { args: [P, P, P, P, P, P, I, P, I, P, P, P, L, I, I, I, I], returns: "void" },
  delta_decode: { args: [P, P, P, P, P, P, I, P, P, L, I, I, I, I, I], returns: "void" },
});

type Shared = DeltaSizes & {
  readonly mixed: Tensor;
  readonly gates: Tensor;
  readonly decay: Tensor;
  readonly bias: Tensor;
};
/** The states of sequences that are kept: places i32[M] as cache_write has them, S sequences of `capacity` rows each. */
type Kept = { readonly places: Tensor; readonly state: Tensor; readonly capacity: number };

const known = ({ keyHeads, valueHeads, keyDim, valueDim }: DeltaSizes) => ({
  W: 2 * keyHeads * keyDim + valueHeads * valueDim,
  ...{ N: valueHeads, K: keyDim, V: valueDim, O: valueHeads * valueDim },
});
const shared = { mixed: "c M W", gates: "c M 2N", decay: "f32 N", bias: "f32 N" };
const inputsOf = ({ mixed, gates, decay, bias }: Shared) => [mixed.ptr, gates.ptr, decay.ptr, bias.ptr] as const;
const sizesOf = ({ keyHeads, valueHeads, keyDim, valueDim }: DeltaSizes) => [keyHeads, valueHeads, keyDim, valueDim] as const;

/** Scratch of each thread, and how much of it, for sequences of up to `tokens`. */
function roomOf(host: Host, sizes: DeltaSizes, tokens: number): readonly [ptr: number, floats: number] {
  const room = deltaRoom(sizes, tokens);
  return [host.scratch(host.threads * room * 4), room];
}

const TILE = 64; // rows of a chunk, and of a program of a GPU

/** The variant for heads of these sizes, or the first that masks what a head has not. */
function variant(gpu: Launcher, name: string, { keyDim: K, valueDim: V }: DeltaSizes): Variant {
  const all = gpu.variants(name, {});
  const size = Math.max(K, V);
  const found = all.find((kernel) => {
    const most = kernel.constant("KD");
    return kernel.constant("EXACT") === 1 ? K === most && V === most : size <= most;
  });
  if (found) return found;
  const sizes = all.map((kernel) => `${kernel.constant("EXACT") === 1 ? "" : "up to "}${kernel.constant("KD")}`);
  throw new RequestError(
    "device.heads",
    `the base model has linear attention with heads of ${K} and ${V}; in ${gpu.compute} on this GPU it was compiled for heads of ${sizes.join(", ")}`,
    'set device to "cpu"',
  );
}

/** What launches share: sizes, and in scratch the results of the first kernels, which go from chunk to chunk. */
function scanned(gpu: Launcher, of: Shared & { readonly bounds: Tensor }, kept: Kept | null) {
  const { mixed, gates, decay, bias, bounds, keyHeads: key_heads, valueHeads: heads, keyDim: K, valueDim: V } = of;
  const M = dim(mixed, 0);
  const { parts, bytes } = deltaScratch(gpu.compute, of, M);
  const ptr = gpu.scratch(bytes);
  const part = (name: keyof typeof parts, dtype: "f32" | "bf16" = gpu.compute): Tensor => {
    return { ptr: ptr + parts[name], dtype, shape: [1] };
  };
  const made = { vectors: part("vectors", "f32"), t: part("t"), p: part("p"), n: part("n") };
  const sizes = { M, key_heads, heads, K, V };
  const tiles = cdiv(M, TILE);
  const inputs = { mixed, gates, decay, bias, bounds };
  const args = { ...inputs, ...made, ...sizes };
  gpu.launch(variant(gpu, "delta_prepare", of), [tiles, heads, 2], args);
  const along = (kernel: Variant) => [cdiv(V, kernel.constant("BV")), heads, tiles] as const;
  const [scan, before] = [variant(gpu, "delta_scan", of), part("before")];
  const places = kept
    ? { places: kept.places, state: kept.state, capacity: kept.capacity }
    : { places: null, state: null, capacity: 0 };
  gpu.launch(scan, along(scan), { ...args, states: before, ...places });
  return { args, before, along, grid: [tiles, heads] as const, part };
}

/** out c[M, N V]; with `state` f32[S, N, K, V] that after each sequence goes there, at places / capacity of its last row. */
export const deltaForward = op<Shared & { bounds: Tensor; out: Tensor } & (Kept | { state: null })>(
  "delta_forward",
  { ...shared, bounds: "i32 M 2", out: "c M O", places: "i32 M", state: "f32 S N K V" },
  {
    known,
    cpu: (of, host) => {
      const { table, count } = sequencesOf(of.bounds);
      base.native_zero(of.out.ptr, sizeOf(of.out.shape) * bytesOf(of.out.dtype));
      const [places, state, capacity] = of.state ? [of.places.ptr, of.state.ptr, of.capacity] : [null, null, 1];
      const room = roomOf(host, of, 0);
      c.delta_forward(...inputsOf(of), table, count, places, state, capacity, of.out.ptr, ...room, ...sizesOf(of));
    },
    cuda: (of, gpu) => {
      const { args, before, grid } = scanned(gpu, of, of.state ? of : null);
      gpu.launch(variant(gpu, "delta_out", of), grid, { ...args, states: before, out: of.out });
    },
  },
);

/** dmixed c[M, W], not in the place of mixed, and the gradients of the gates, which take theirs, from dout c[M, N V]. */
export const deltaBackward = op<Shared & { bounds: Tensor; dout: Tensor; dmixed: Tensor }>(
  "delta_backward",
  { ...shared, bounds: "i32 M 2", dout: "c M O", dmixed: "c M W" },
  {
    known,
    cpu: (of, host) => {
      const { table, count, longest } = sequencesOf(of.bounds);
      const rows = [of.bounds.ptr, dim(of.mixed, 0), table, count] as const;
      const room = roomOf(host, of, longest);
      c.delta_backward(of.dout.ptr, ...inputsOf(of), ...rows, of.dmixed.ptr, of.gates.ptr, ...room, ...sizesOf(of));
    },
    cuda: (of, gpu) => {
      const { dout, dmixed } = of;
      const { args: made, before, along, grid, part } = scanned(gpu, of, null);
      const args = { ...made, dout, dmixed, before, after: part("after"), dqk: part("dqk") };
      const [back, unit] = [variant(gpu, "delta_scan_backward", of), variant(gpu, "delta_unit_backward", of)];
      const [tiles, heads] = grid;
      gpu.launch(back, along(back), args);
      gpu.launch(variant(gpu, "delta_chunk_backward", of), [tiles, heads, 2], args);
      const state = variant(gpu, "delta_state_backward", of);
      const parts = state.constant("KD") / state.constant("BK"); // of the features of keys
      gpu.launch(state, [parts * tiles, heads, 2], args);
      const gates = gpu.kernel("delta_gates_backward", { PARTS: parts });
      gpu.launch(gates, [tiles, cdiv(heads, gates.constant("BH"))], args);
      gpu.launch(unit, [cdiv(made.M, unit.constant("BM")), made.key_heads, 2], args);
    },
  },
);

/** A row of each sequence: out, from its state, which moves on by the row; 0 without a place. */
export const deltaDecode = op<Shared & Kept & { out: Tensor }>(
  "delta_decode",
  { ...shared, out: "c M O", places: "i32 M", state: "f32 S N K V" },
  {
    known,
    cpu: (of, host) => {
      const { places, state, capacity, out } = of;
      const room = roomOf(host, of, 0);
      const rows = [places.ptr, state.ptr, capacity, out.ptr, ...room, dim(of.mixed, 0)] as const;
      c.delta_decode(...inputsOf(of), ...rows, ...sizesOf(of));
    },
    cuda: (of, gpu) => {
      const { mixed, gates, decay, bias, places, state, out, capacity } = of;
      const { keyHeads: key_heads, valueHeads: heads, keyDim: K, valueDim: V } = of;
      const kernel = variant(gpu, "delta_decode", of);
      const args = { mixed, gates, decay, bias, places, state, out, key_heads, heads, K, V, capacity };
      gpu.launch(kernel, [dim(mixed, 0), heads, cdiv(V, kernel.constant("BV"))], args);
    },
  },
);

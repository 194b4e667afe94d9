// What the operations of Qwen 3.5's layers compute (operations.ts): heads of q with gates, the gated delta rule with the
// convolution before and the norm after it, and the gate of an expert that all tokens pass.

import { invariant } from "../../base/errors.ts";
import { sum } from "../../base/shape.ts";
import { columnsFrom } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import type { Heads } from "../../families/definition.ts";
import { convolutionBackward, convolutionDecode, convolutionForward, convolutionKeep } from "../../ops/convolution.ts";
import { deltaBackward, deltaDecode, deltaForward } from "../../ops/deltanet.ts";
import { gatednormBackward, gatednormForward } from "../../ops/gatednorm.ts";
import { headsJoin, headsSplit } from "../../ops/heads.ts";
import { regroup } from "../../ops/regroup.ts";
import { tokengateBackward, tokengateForward } from "../../ops/tokengate.ts";
import type { Behaviour } from "./operations.ts";

/** Features of heads of q that each have a gate, with those of k and v. */
export const gatedWidth = ({ heads, kvHeads, headDim }: Heads): number => 2 * (heads + kvHeads) * headDim;

export const ungated: Behaviour<"ungated"> = {
  width: ({ heads }, width) => {
    invariant(gatedWidth(heads) === width, `heads with gates of ${gatedWidth(heads)} features read ${width}`);
    return (heads.heads + 2 * heads.kvHeads) * heads.headDim;
  },
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, heads }, pass) => headsSplit(pass.device, { gated: pass.value(from), y: pass.value(to), ...heads }),
  backward: ({ from, to, heads }, pass) =>
    headsJoin(pass.device, { dy: pass.gradient(to)!, dgated: pass.gradient(from)!, ...heads }),
};

export const convolution: Behaviour<"convolution"> = {
  width: ({ first, channels }, width) => {
    invariant(first + channels <= width, `a convolution of ${channels} features from ${first} on of ${width}`);
    return channels;
  },
  isCheap: () => true,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, weight, bias, first, channels }, pass) => {
    const { device, cached, batch } = pass;
    const x = columnsFrom(pass.value(from), first, channels);
    const of = { x, weight: pass.factor(weight), bias: bias === null ? null : pass.factor(bias), y: pass.value(to) };
    if (!cached) return convolutionForward(device, { ...of, bounds: batch.bounds });
    const kept = { places: cached.places, window: cached.cache.linear!.window, capacity: cached.capacity };
    if (cached.from === "cache") return convolutionDecode(device, { ...of, ...kept });
    convolutionForward(device, { ...of, bounds: batch.bounds });
    convolutionKeep(device, { x, bounds: batch.bounds, ...kept });
  },
  backward: ({ from, to, weight, bias, first, channels }, pass) =>
    convolutionBackward(pass.device, {
      dy: pass.gradient(to)!,
      x: columnsFrom(pass.value(from), first, channels),
      weight: pass.factor(weight),
      bias: bias === null ? null : pass.factor(bias),
      bounds: pass.batch.bounds,
      dx: columnsFrom(pass.gradient(from)!, first, channels),
    }),
};

export const deltaRule: Behaviour<"deltaRule"> = {
  width: ({ heads: { keyHeads, valueHeads, keyDim, valueDim } }, width) => {
    const read = 2 * keyHeads * keyDim + valueHeads * valueDim;
    invariant(read === width, `a delta rule of ${read} features reads ${width}`);
    return valueHeads * valueDim;
  },
  fits: ({ heads }, _, other) => other === 2 * heads.valueHeads,
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, heads, gates, decay, bias }, pass) => {
    const { device, cached, batch } = pass;
    const vectors = { decay: pass.factor(decay), bias: pass.factor(bias) };
    const of = { mixed: pass.value(from), gates: pass.value(gates), ...vectors, out: pass.value(to), ...heads };
    if (!cached) return deltaForward(device, { ...of, bounds: batch.bounds, state: null });
    const kept = { places: cached.places, state: cached.cache.linear!.state!, capacity: cached.capacity };
    if (cached.from === "cache") deltaDecode(device, { ...of, ...kept });
    else deltaForward(device, { ...of, bounds: batch.bounds, ...kept });
  },
  backward: ({ from, to, heads, gates, decay, bias }, pass) => {
    pass.restore(from);
    deltaBackward(pass.device, {
      ...{ dout: pass.gradient(to)!, mixed: pass.value(from), gates: pass.value(gates) },
      ...{ decay: pass.factor(decay), bias: pass.factor(bias), bounds: pass.batch.bounds },
      ...{ dmixed: pass.gradient(from)!, ...heads },
    });
  },
};

/** The last columns of the value that gates a norm. */
const gatesOf = (value: Tensor, width: number): Tensor => columnsFrom(value, value.shape[1]! - width, width);

export const gatedNorm: Behaviour<"gatedNorm"> = {
  width: ({ size }, width) => {
    invariant(width % size === 0, `norms of ${size} features in ${width}`);
    return width;
  },
  fits: (_, width, other) => other >= width,
  otherGradient: "own",
  isCheap: () => true,
  saved: null,
  inputGradient: "output",
  forward: ({ from, to, gate, weight, size, eps }, pass) => {
    const [x, y] = [pass.value(from), pass.value(to)];
    const gates = gatesOf(pass.value(gate), x.shape[1]!);
    gatednormForward(pass.device, { x, gate: gates, weight: pass.norm(weight, size), y, eps });
  },
  backward: ({ from, to, gate, weight, size, eps }, pass) => {
    const x = pass.value(from);
    const [gates, dgate] = [pass.value(gate), pass.gradient(gate)!].map((of) => gatesOf(of, x.shape[1]!));
    const io = { dy: pass.gradient(to)!, x, gate: gates!, dx: pass.gradient(from)!, dgate: dgate! };
    gatednormBackward(pass.device, { ...io, weight: pass.norm(weight, size), eps });
  },
};

export const tokenGate: Behaviour<"tokenGate"> = {
  width: ({ size }, width) => {
    invariant(width === size, `a gate of tokens of ${size} features reads ${width}`);
    return width;
  },
  fits: (_, width, other) => other === width,
  otherGradient: "added",
  isCheap: () => true,
  saved: null,
  inputGradient: "own",
  forward: ({ from, to, gate, weight, residual }, pass) =>
    tokengateForward(pass.device, {
      ...{ x: pass.value(from), gate: pass.value(gate), weight: pass.factor(weight) },
      ...{ residual: pass.value(residual), y: pass.value(to) },
    }),
  backward: ({ from, to, gate, weight }, pass) => {
    pass.restore(gate);
    tokengateBackward(pass.device, {
      ...{ dy: pass.gradient(to)!, x: pass.value(from), gate: pass.value(gate), weight: pass.factor(weight) },
      ...{ dx: pass.gradient(from)!, dgate: pass.gradient(gate)! },
    });
  },
};

export const regrouped: Behaviour<"regroup"> = {
  width: ({ groups, parts }, width) => {
    invariant(groups * sum(parts) === width, `${groups} groups of ${parts} features read ${width}`);
    return width;
  },
  isCheap: () => false,
  saved: null,
  inputGradient: "input",
  forward: ({ from, to, groups, parts }, pass) =>
    regroup(pass.device, { from: pass.value(from), to: pass.value(to), groups, parts, isBack: false }),
  backward: ({ from, to, groups, parts }, pass) =>
    regroup(pass.device, { from: pass.gradient(to)!, to: pass.gradient(from)!, groups, parts, isBack: true }),
};

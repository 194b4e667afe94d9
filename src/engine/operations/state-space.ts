// What the operations of Mamba 2's layers compute (operations.ts), next to the convolution of operations/gated.ts.

import { invariant } from "../../base/errors.ts";
import { columnsFrom } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import type { Op } from "../../families/definition.ts";
import { groupnormBackward, groupnormForward } from "../../ops/groupnorm.ts";
import { stateSpaceBackward, stateSpaceDecode, stateSpaceForward } from "../../ops/statespace.ts";
import type { LayerPass } from "../layers/layer-pass.ts";
import type { Behaviour } from "./operations.ts";

/** dt of each head: the last columns of a value or of its gradient. */
const stepsOf = (value: Tensor, heads: number): Tensor => columnsFrom(value, value.shape[1]! - heads, heads);

const argumentsOf = ({ from, heads, steps, decay, bias, skip, limits }: Op<"stateSpace">, pass: LayerPass) => ({
  ...{ mixed: pass.value(from), steps: stepsOf(pass.value(steps), heads.heads) },
  ...{ decay: pass.factor(decay), bias: pass.factor(bias), skip: pass.factor(skip) },
  ...heads,
  ...limits,
});

export const stateSpace: Behaviour<"stateSpace"> = {
  width: ({ heads: { heads, headDim, groups, stateDim } }, width) => {
    const read = heads * headDim + 2 * groups * stateDim;
    invariant(read === width, `a state space of ${read} features reads ${width}`);
    return heads * headDim;
  },
  fits: ({ heads }, _, other) => other >= heads.heads,
  otherGradient: "added",
  isCheap: () => false,
  saved: null,
  inputGradient: "own",
  forward: (of, pass) => {
    const { device, cached, batch } = pass;
    const args = { ...argumentsOf(of, pass), out: pass.value(of.to) };
    if (!cached) return stateSpaceForward(device, { ...args, bounds: batch.bounds, state: null });
    const kept = { places: cached.places, state: cached.cache.linear!.state!, capacity: cached.capacity };
    if (cached.from === "cache") stateSpaceDecode(device, { ...args, ...kept });
    else stateSpaceForward(device, { ...args, bounds: batch.bounds, ...kept });
  },
  backward: (of, pass) => {
    pass.restore(of.from);
    stateSpaceBackward(pass.device, {
      ...argumentsOf(of, pass),
      ...{ dout: pass.gradient(of.to)!, bounds: pass.batch.bounds, dmixed: pass.gradient(of.from)! },
      dsteps: stepsOf(pass.gradient(of.steps)!, of.heads.heads),
    });
  },
};

export const groupNorm: Behaviour<"groupNorm"> = {
  width: ({ size, groups }, width) => {
    invariant(size === width && size % groups === 0, `norms of ${groups} groups of ${size} features in ${width}`);
    return width;
  },
  fits: (_, width, other) => other >= width,
  otherGradient: "own",
  isCheap: () => true,
  saved: null,
  inputGradient: "output",
  forward: ({ from, to, gate, weight, size, groups, eps }, pass) => {
    const [x, y, gates] = [pass.value(from), pass.value(to), columnsFrom(pass.value(gate), 0, size)];
    groupnormForward(pass.device, { x, gate: gates, weight: pass.norm(weight, size), y, groups, eps });
  },
  backward: ({ from, to, gate, weight, size, groups, eps }, pass) => {
    const [gates, dgate] = [pass.value(gate), pass.gradient(gate)!].map((of) => columnsFrom(of, 0, size));
    const io = { dy: pass.gradient(to)!, x: pass.value(from), gate: gates!, dx: pass.gradient(from)!, dgate: dgate! };
    groupnormBackward(pass.device, { ...io, weight: pass.norm(weight, size), groups, eps });
  },
};

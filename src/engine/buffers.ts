// The memory of a pass: what a micro-batch keeps from its forward to its backward pass (Activations), and what every pass may
// overwrite (Workspace). All is carved from arenas before training, for the largest micro-batch.

import type { DType } from "../base/dtype.ts";
import { type Group, type ModelSpec, tableRows } from "../base/spec.ts";
import type { Tensor } from "../device/device.ts";
import { type AdapterCapacity, groupShape } from "../methods/layout.ts";

/**
 * What the backward pass computes again instead of keeping: nothing; the norms' and the activation's outputs (cheap: no matrix
 * product); or all of a layer but its input.
 */
export type Recomputation = "none" | "selective" | "full";

export type Sizes = AdapterCapacity & {
  readonly rows: number; // most of a micro-batch, a multiple of the row tile
  readonly targets: number; // most target rows of a micro-batch, a multiple of the row tile
  readonly chunk: number; // rows of a chunk of logits
  readonly layers: number; // of this stage
  readonly recomputation: Recomputation;
};

type Take = (dtype: DType, ...shape: number[]) => Tensor;

/** What one layer writes in its forward pass and its backward pass reads. `x` is apart: it is the output of the layer below. */
export type LayerActivations = {
  readonly rstd1: Tensor;
  readonly qkv: Tensor; // as the linear made it, where a norm of q and k needs it again; else rotated in place
  readonly rotated: Tensor;
  readonly attention: Tensor;
  readonly lse: Tensor;
  readonly mid: Tensor; // the stream after attention
  readonly rstd2: Tensor;
  readonly gateUp: Tensor;
  readonly s: Readonly<Record<Group, Tensor>>;
  /** Products that DoRA scales, where the backward pass finds them; null where there is no DoRA, or they are made again. */
  readonly z: Readonly<Record<Group, Tensor | null>>;
  readonly h1: Tensor; // outputs of the two norms and of the activation: shared by all layers when not kept
  readonly h2: Tensor;
  readonly act: Tensor;
};

export type Activations = {
  readonly inputs: readonly Tensor[]; // x of each layer, and the stream after the last
  readonly layers: readonly LayerActivations[];
};

export type Workspace = {
  readonly h: Tensor; // [M, H] output of a norm, computed again
  readonly act: Tensor; // [M, I]
  readonly grad: Tensor; // [M, H] gradient of the stream
  readonly gradH: Tensor; // [M, H] of a norm's output
  readonly gradAttention: Tensor; // [M, Q D]
  readonly gradQkv: Tensor; // [M, W]
  readonly gradAct: Tensor; // [M, I]
  readonly ds: Tensor; // [M, 3 R]
  readonly delta: Tensor; // [Q, M]
  /** [M, H] the product that DoRA scales of the down projection, where that is made again: with full recomputation. */
  readonly z: Tensor | null;
};

/** What a forward pass overwrites. */
export type ForwardWork = Pick<Workspace, "h" | "act" | "z">;

/** Buffers of the output head and the loss. */
export type HeadBuffers = {
  readonly x: Tensor; // [T, H] target rows of the stream, then their gradient
  readonly h: Tensor; // [T, H] normed
  readonly gradH: Tensor; // [T, H]
  readonly rstd: Tensor;
  readonly logits: Tensor; // [chunk, tableRows]
  readonly poolRows: Tensor; // i32[T] of pooled hidden states (engine/pooling.ts)
  readonly poolBounds: Tensor; // i32[T, 2]
};

const widths = (spec: ModelSpec) => ({
  hidden: spec.hidden,
  attention: spec.heads * spec.headDim,
  qkv: (spec.heads + 2 * spec.kvHeads) * spec.headDim,
  inner: spec.intermediate,
});

function takeLayer(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes, work: ForwardWork) {
  const { rows, rank, recomputation, groups, magnitudes } = sizes;
  const w = widths(spec);
  const qkv = take(compute, rows, w.qkv);
  // Only the inputs of targeted groups are needed again.
  const kept = (group: Group) => recomputation === "none" && groups.includes(group);
  const product = (group: Group) => {
    const isMade = magnitudes.includes(group) && !(group === "down" && recomputation === "full");
    return isMade ? take(compute, rows, groupShape(spec, group).firstColumn.at(-1)!) : null;
  };
  const low = (group: Group, linears: number) => take(compute, groups.includes(group) ? rows : 0, linears * rank);
  return {
    rstd1: take("f32", rows),
    qkv,
    rotated: spec.qkNorm ? take(compute, rows, w.qkv) : qkv,
    attention: take(compute, rows, w.attention),
    lse: take("f32", spec.heads, rows),
    mid: take(compute, rows, w.hidden),
    rstd2: take("f32", rows),
    gateUp: take(compute, rows, 2 * w.inner),
    s: {
      qkv: low("qkv", 3),
      o: low("o", 1),
      gateUp: low("gateUp", 2),
      down: low("down", 1),
    },
    z: { qkv: product("qkv"), o: product("o"), gateUp: product("gateUp"), down: product("down") },
    h1: kept("qkv") ? take(compute, rows, w.hidden) : work.h,
    h2: kept("gateUp") ? take(compute, rows, w.hidden) : work.h,
    act: kept("down") ? take(compute, rows, w.inner) : work.act,
  };
}

export function takeForwardWork(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes): ForwardWork {
  const { rows, recomputation, magnitudes } = sizes;
  const w = widths(spec);
  return {
    h: take(compute, rows, w.hidden),
    act: take(compute, rows, w.inner),
    z: recomputation === "full" && magnitudes.includes("down") ? take(compute, rows, w.hidden) : null,
  };
}

export function takeWorkspace(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes): Workspace {
  const { rows, rank } = sizes;
  const w = widths(spec);
  return {
    ...takeForwardWork(take, compute, spec, sizes),
    grad: take(compute, rows, w.hidden),
    gradH: take(compute, rows, w.hidden),
    gradAttention: take(compute, rows, w.attention),
    gradQkv: take(compute, rows, w.qkv),
    gradAct: take(compute, rows, w.inner),
    ds: take(compute, rows, 3 * rank),
    delta: take("f32", spec.heads, rows),
  };
}

/** With full recomputation all layers share one layer's buffers. */
export function takeActivations(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes, work: ForwardWork): Activations {
  const inputs = Array.from({ length: sizes.layers + 1 }, () => take(compute, sizes.rows, spec.hidden));
  if (sizes.recomputation === "full") {
    const shared = takeLayer(take, compute, spec, sizes, work);
    return { inputs, layers: inputs.slice(1).map(() => shared) };
  }
  return { inputs, layers: inputs.slice(1).map(() => takeLayer(take, compute, spec, sizes, work)) };
}

export function takeHead(take: Take, compute: DType, spec: ModelSpec, { targets, chunk }: Sizes): HeadBuffers {
  return {
    x: take(compute, targets, spec.hidden),
    h: take(compute, targets, spec.hidden),
    gradH: take(compute, targets, spec.hidden),
    rstd: take("f32", targets),
    logits: take(compute, chunk, tableRows(spec)),
    poolRows: take("i32", targets),
    poolBounds: take("i32", targets, 2),
  };
}

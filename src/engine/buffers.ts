// The memory of a pass: what a micro-batch keeps from its forward to its backward pass (Activations), and what every pass may
// overwrite (Workspace). All is carved from arenas before training, for the largest micro-batch.

import { bytesOf, type DType } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import { type Group, type ModelSpec, tableRows } from "../base/spec.ts";
import type { StageSetup } from "../bus/messages.ts";
import { arenaBytes } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { type AdapterCapacity, groupShape, methodsAt } from "../methods/layout.ts";
import { DEFINITIONS, type PeftMethod } from "../methods/registry.ts";

export type StageSizes = StageSetup["sizes"];
/** What decides the size of a pass's memory. */
export type Sizes = AdapterCapacity & Pick<StageSizes, "rows" | "targets" | "chunk" | "layers" | "recomputation">;

type Take = (dtype: DType, ...shape: number[]) => Tensor;

/** The product of a group of linears with all that is added, of each method that is computed from it. */
export type Products = Readonly<Partial<Record<PeftMethod, Tensor>>>;

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
  /** Whole products for the backward pass; none of a group where they are made again. */
  readonly z: Readonly<Record<Group, Products>>;
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
  /** Whole products of the down projection, [M, H], where they are made again: with full recomputation. */
  readonly z: Products;
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

function takeProducts(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes, group: Group): Products {
  const keeping = methodsAt(sizes, group).filter((method) => DEFINITIONS[method].keepsProduct);
  const columns = groupShape(spec, group).firstColumn.at(-1)!;
  return Object.fromEntries(keeping.map((method) => [method, take(compute, sizes.rows, columns)]));
}

function takeLayer(take: Take, compute: DType, spec: ModelSpec, sizes: Sizes, work: ForwardWork) {
  const { rows, rank, recomputation, groups } = sizes;
  const w = widths(spec);
  const qkv = take(compute, rows, w.qkv);
  // Only the inputs of targeted groups are needed again.
  const kept = (group: Group) => recomputation === "none" && groups.includes(group);
  const product = (group: Group) =>
    group === "down" && recomputation === "full" ? {} : takeProducts(take, compute, spec, sizes, group);
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
  const { rows, recomputation } = sizes;
  const w = widths(spec);
  return {
    h: take(compute, rows, w.hidden),
    act: take(compute, rows, w.inner),
    z: recomputation === "full" ? takeProducts(take, compute, spec, sizes, "down") : {},
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

/** Bytes that a set of buffers takes, by asking for them and counting. */
export function countBytes(carve: (take: Take) => void): number {
  const sizes: number[] = [];
  carve((dtype, ...shape) => {
    sizes.push(sizeOf(shape) * bytesOf(dtype));
    return { ptr: 0, dtype, shape };
  });
  return arenaBytes(sizes);
}

/** Bytes of all the buffers of a stage, by kind. */
export function bufferBytes(compute: Device["compute"], spec: ModelSpec, sizes: Sizes, last: boolean) {
  let workspace: Workspace | undefined;
  const workBytes = countBytes((take) => {
    workspace = takeWorkspace(take, compute, spec, sizes);
  });
  return {
    workspace: workBytes,
    activations: countBytes((take) => takeActivations(take, compute, spec, sizes, workspace!)),
    head: last ? countBytes((take) => takeHead(take, compute, spec, sizes)) : 0,
  };
}

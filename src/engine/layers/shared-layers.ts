// The memory of layers of which only inputs are kept: one after the other has the same, as much as the largest needs, and the
// head has it between the last layer's forward and backward pass. The head lies where the last layer's gradients come to lie,
// so that what this layer has computed is still there in its backward pass, where that takes little more memory.
//
// Of some layers the input of attention is kept, too, in host memory (offloaded-streams.ts): queries, keys and values, and what
// the operations before it save. That part lies in a region of its own, so that it can be copied while other layers run.

import type { DType } from "../../base/dtype.ts";
import { maxOf, range } from "../../base/shape.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { carve } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import type { Operation } from "../../families/definition.ts";
import {
  type ByName,
  countBytes,
  type ForwardWork,
  type HeadBuffers,
  type LayerActivations,
  type Sizes,
  shared,
  type Take,
  takeGradients,
  takeHead,
  takeLayer,
} from "./buffers.ts";
import type { LayerProgram, Program } from "./program.ts";

export type SharedLayers = {
  /** Bytes of a pass's region; 0 where no layer needs one. */
  readonly regionBytes: number;
  readonly layersAt: (region: Tensor | null) => readonly LayerActivations[];
  readonly gradients: readonly ByName[];
  readonly head: HeadBuffers | null;
  /** Whether what the last layer computes outlasts the head. */
  readonly keepsLast: boolean;
};

/** The share more that layers and head together may take for the last layer to be kept. */
const MORE_FOR_LAST = 1 / 6;

/** The operations before a layer's attention. */
export function beforeAttention({ operations }: LayerProgram): readonly Operation[] {
  return operations.slice(
    0,
    Math.max(
      0,
      operations.findIndex(({ op }) => op === "attention"),
    ),
  );
}

/** Layers of a program, or halves, whose attention's input can be kept, by their places. */
export const attending = (program: Program): readonly number[] =>
  [...program.keys()].filter((i) => beforeAttention(program[i]!).length > 0);

/** Those of them whose input is kept, as many as sizes say, evenly spread. */
export function keptInputs(
  program: Program,
  { recomputation, hostInputs = 0 }: Pick<Sizes, "recomputation" | "hostInputs">,
): ReadonlySet<number> {
  const places = attending(program);
  const before = (i: number) => Math.floor((i * hostInputs) / places.length);
  return new Set(recomputation === "offload" ? places.filter((_, i) => before(i + 1) > before(i)) : []);
}

/** `gradients`: whether there is a backward pass; `head`: the model, where the head is in the same memory. */
export function takeSharedLayers(
  take: Take,
  compute: DType,
  program: Program,
  sizes: Sizes,
  work: ForwardWork,
  { gradients, head }: { readonly gradients: boolean; readonly head: ModelSpec | null },
): SharedLayers {
  const tables = shared(take);
  const kept = keptInputs(program, sizes);
  const valuesOf = (i: number, own: Take, region: Take) => {
    const layer = program[i]!;
    const [first, named, inRegion] = [new Set(kept.has(i) ? beforeAttention(layer) : []), shared(own), shared(region)];
    const of = (operation: Operation) => (first.has(operation) ? inRegion : named);
    return takeLayer({ of, pass: tables }, compute, layer, sizes, work);
  };
  const takeOf = (i: number, own: Take, region: Take) => ({
    layer: valuesOf(i, own, region),
    gradients: gradients ? takeGradients(own, compute, [program[i]!], sizes.rows) : new Map<string, Tensor>(),
  });
  const headOf = (own: Take, keepsLast: boolean) => {
    if (keepsLast) valuesOf(program.length - 1, own, nowhere);
    return head && takeHead(own, compute, head, sizes);
  };
  const nowhere: Take = (dtype, ...shape) => ({ ptr: 0, dtype, shape });
  const places = range(program.length);
  const layerBytes = maxOf(places.map((i) => countBytes((own) => void takeOf(i, own, nowhere))));
  const [least, withLast] = [false, true].map((keepsLast) =>
    Math.max(
      layerBytes,
      countBytes((own) => void headOf(own, keepsLast)),
    ),
  );
  const keepsLast = withLast! <= least! * (1 + MORE_FOR_LAST);
  const { ptr } = take("u8", keepsLast ? withLast! : least!);
  const at = (region: Tensor | null) => places.map((i) => takeOf(i, carve(ptr), region ? carve(region.ptr) : nowhere));
  return {
    regionBytes: maxOf([...kept].map((i) => countBytes((region) => void takeOf(i, nowhere, region)))),
    layersAt: (region) => at(region).map(({ layer }) => layer),
    gradients: at(null).map((of) => of.gradients),
    head: headOf(carve(ptr), keepsLast),
    keepsLast,
  };
}

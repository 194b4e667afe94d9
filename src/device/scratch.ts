// How much memory the kernels of a device need only while they run: for the plan, and for the stage that reserves it.
//
// The kernels check at each launch that what they need was reserved, so these formulas are bounds that a test plays through.

import { type AdapterLayout, groupShape } from "../base/layout.ts";
import { alignUp, sum } from "../base/shape.ts";
import type { Group, ModelSpec } from "../base/spec.ts";
import type { Device } from "./device.ts";

export type ScratchNeed = {
  readonly spec: ModelSpec;
  /** Groups of linears that adapters target. */
  readonly groups: readonly Group[];
  readonly rows: number; // of the largest micro-batch
  readonly rank: number; // padded
  readonly adapters: number;
  readonly layout: Pick<AdapterLayout, "tensors">;
};

/** Rows of a tile, and tiles whose gradients one program sums (kernels/triton/lora.py, CHUNK). */
const [ROW_TILE, UP_CHUNK, DOWN_CHUNK] = [128, 8, 4];
/** Columns of x that one program of lora_down sums, and of dy that one of lora_up_grad reads. */
const DOWN_PART = 1024;
/** Parts of a tensor that grad_norm sums apart. */
const NORM_SLICES = 32;
const UP_COLUMNS = { f32: 64, bf16: 128 };

/** Bytes of scratch for any launch of a stage; launches follow each other, so the largest decides. */
export function scratchBytes({ kind, compute }: Pick<Device, "kind" | "compute">, need: ScratchNeed): number {
  const { spec, rows } = need;
  if (kind === "cpu") return rows * Math.max(spec.hidden, spec.intermediate, spec.heads * spec.headDim) * 4; // the dropped x
  const linears = need.groups.flatMap((group) => linearScratch(compute, group, need));
  const norms = need.adapters * need.layout.tensors.length * NORM_SLICES * 4;
  return alignUp(Math.max(norms, ...linears), 256);
}

function linearScratch(compute: "f32" | "bf16", group: Group, { spec, rows, rank }: ScratchNeed): number[] {
  const { in: width, firstColumn } = groupShape(spec, group);
  const [out, columns] = [firstColumn.at(-1)!, (firstColumn.length - 1) * rank];
  const tiles = Math.ceil(rows / ROW_TILE);
  const blocks = sum(firstColumn.slice(1).map((last, g) => Math.ceil((last - firstColumn[g]!) / UP_COLUMNS[compute])));
  return [
    Math.ceil(width / DOWN_PART) * rows * columns * 4,
    (blocks * rows + Math.ceil(tiles / UP_CHUNK) * out) * rank * 4,
    Math.ceil(tiles / DOWN_CHUNK) * columns * width * 4,
  ];
}

// All that the adapters of a run take of a device, and how the kernels see it: stacked, one slot after the other. A plan
// counts by this what a pool takes.

import { bytesOf, type DType } from "../base/dtype.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Device, Tensor } from "../device/device.ts";
import { GROUPS, type Group, groupShape, groupsOfModel } from "../families/linears.ts";
import { type AdapterCapacity, ALIGN, type LayerRange, layoutAdapters, methodsAt } from "../methods/layout.ts";
import { isLowRank, PEFT_METHODS, type PeftMethod, storedBy } from "../methods/registry.ts";
import { ADAMW_TABLE_WIDTH } from "../ops/adamw.ts";
import { countBytes } from "./buffers.ts";
import { COMPUTATIONS } from "./methods/registry.ts";
import { tableBytes } from "./table.ts";
import type { MethodTensors, TargetGroup } from "./target-group.ts";

type Take = (dtype: DType, ...shape: number[]) => Tensor;

/** Tables that a method has, i32[slots] or i32[slots, width]; null for those that it has no use for. */
export type MethodTables = {
  readonly stale: Tensor | null;
  readonly settling: Tensor | null;
  readonly own: Tensor | null;
  readonly present: ReadonlyMap<Group, Tensor>;
};

/** What the adapters of a pool are; the pool takes memory for them. */
export type PoolNeed = {
  readonly spec: ModelSpec;
  readonly layers: LayerRange;
  readonly slots: number;
  readonly capacity: AdapterCapacity;
  readonly compute: Device["compute"];
};

/** Bytes of a pool, for the plan. */
export const poolBytes = (need: PoolNeed): number => countBytes((take) => takePool(take, need));

export function takePool(take: Take, { spec, layers, slots, capacity, compute }: PoolNeed) {
  const layout = layoutAdapters(spec, layers, capacity);
  const ofModel = groupsOfModel(spec);
  const { size, tensors } = layout;
  const block = () => take("f32", slots, size);
  const blocks = { params: block(), grads: block(), m: block(), v: block() };
  const copy = compute === "bf16" ? take("bf16", slots, size) : null; // of the parameters, where kernels read bf16
  const optimizer = {
    tensors: take("i32", tensors.length, 3),
    squares: take("f32", slots, tensors.length),
    factors: take("i32", size / ALIGN),
    table: take("f32", slots, ADAMW_TABLE_WIDTH),
  };
  const elements = ((layers.to - layers.from) * tableBytes(slots)) / 4;
  const groups = new Map(
    capacity.groups.map((group) => [group, { ranks: take("i32", elements), scale: take("f32", elements) }]),
  );
  const methods = new Map<PeftMethod, MethodTables>();
  for (const method of PEFT_METHODS) {
    const at = capacity.methods[method] ?? [];
    if (at.length === 0) continue;
    const { refresh, settle, table, rows } = COMPUTATIONS[method];
    methods.set(method, {
      stale: refresh ? take("i32", slots) : null,
      settling: settle ? take("i32", slots) : null,
      own: table ? take("i32", slots, table.width) : null,
      present: new Map(rows ? at.map((group) => [group, take("i32", slots)]) : []),
    });
  }
  const part = (of: Tensor, offset: number, ...shape: readonly number[]): Tensor => ({
    ...{ ptr: of.ptr + offset * bytesOf(of.dtype), dtype: of.dtype, shape: [slots, ...shape], stride: size },
  });
  const sites = layout.sites.map(({ layer, group, tensors }): TargetGroup => {
    const { firstColumn } = groupShape(spec, group, layer);
    const { ranks, scale } = groups.get(group)!;
    const linears = GROUPS[group].length;
    const matrix = (of: Tensor, name: "A" | "B") => {
      const { offset, rows, columns } = tensors[name]!;
      return part(of, offset, rows, columns);
    };
    const inLayer = (of: Tensor): Tensor => {
      return { ...of, ptr: of.ptr + (layer - layers.from) * tableBytes(slots), shape: [slots, linears] };
    };
    const ofMethod = (method: PeftMethod): MethodTensors => {
      const { own, present } = methods.get(method)!;
      const vectors = (of: Tensor) =>
        Object.fromEntries(
          storedBy(method).flatMap((name) =>
            isLowRank(name) ? [] : [[name, part(of, tensors[name]!.offset, tensors[name]!.columns)]],
          ),
        );
      const derived = Object.keys(COMPUTATIONS[method].derived ?? {}).map((name) => {
        return [name, take("f32", slots, firstColumn.at(-1)!)] as const;
      });
      return {
        values: vectors(blocks.params),
        grads: vectors(blocks.grads),
        derived: Object.fromEntries(derived),
        table: own,
        present: present.get(group) ?? null,
      };
    };
    return {
      ...{ a: matrix(copy ?? blocks.params, "A"), b: matrix(copy ?? blocks.params, "B") },
      ...{ da: matrix(blocks.grads, "A"), db: matrix(blocks.grads, "B") },
      ...{ ranks: inLayer(ranks), scale: inLayer(scale), firstColumn, linears, rank: layout.rank, layer, group },
      module: layer * ofModel.length + ofModel.indexOf(group),
      methods: Object.fromEntries(methodsAt(capacity, group).map((method) => [method, ofMethod(method)])),
    };
  });
  return { layout, blocks, copy, optimizer, groups, methods, sites };
}

/** The row of a slot in a tensor f32 or bf16 [slots, columns]. */
export function slotRow(of: Tensor, slot: number): Tensor {
  const shape = of.shape.slice(1);
  return { ptr: of.ptr + slot * (of.stride ?? sizeOf(shape)) * bytesOf(of.dtype), dtype: of.dtype, shape };
}

// What adapters take of a stage: a block each, of its own size, and columns of s = A drop(x) in a pass.

import type { LayerRange } from "../base/layers.ts";
import { maxOf, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Device } from "../device/device.ts";
import type { StageSizes } from "../engine/layers/buffers.ts";
import { gradientBytes } from "../engine/pool/gradient-buffers.ts";
import { adapterBytes, tableBytes } from "../engine/pool/pool-memory.ts";
import { GROUP_NAMES, GROUPS } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { LOW_KEYS, type LowKey, layoutAdapter, widthIn } from "../methods/layout.ts";
import { DEFINITIONS, PEFT_METHODS, type PeftMethod } from "../methods/registry.ts";

/** Columns of s, whichever of these adapters a row is of; of each group and table that any targets. */
export function lowWidths(adapters: readonly PoolAdapter[], layers: LayerRange): ReadonlyMap<LowKey, number> {
  const widths = LOW_KEYS.map((key) => [key, maxOf(adapters.map((adapter) => widthIn(adapter, layers, key)))] as const);
  return new Map(widths.filter(([, width]) => width > 0));
}

/** Elements of s of a pass of `rows` rows; of the head they are those of a chunk of targets. */
export const lowSizes = (widths: ReadonlyMap<LowKey, number>, rows: number, chunk: number): StageSizes["low"] =>
  Object.fromEntries([...widths].map(([key, width]) => [key, width * (key === "head" ? chunk : rows)]));

/** Where adapters need the whole product of a group, by their methods. */
export function productSizes(adapters: readonly PoolAdapter[]): StageSizes["products"] {
  const targeted = (method: PeftMethod) => {
    const targets = new Set(adapters.filter((of) => of.method === method).flatMap((of) => of.targets));
    return GROUP_NAMES.filter((group) => GROUPS[group].some((linear) => targets.has(linear)));
  };
  const keeping = PEFT_METHODS.filter((method) => DEFINITIONS[method].keepsProduct);
  return Object.fromEntries(keeping.map((method) => [method, targeted(method)]).filter(([, groups]) => groups!.length > 0));
}

/** Bytes of the block that a slot has for an adapter of a run, which holds one of these after the other. */
export const blockBytes = (
  spec: ModelSpec,
  layers: LayerRange,
  holds: readonly PoolAdapter[],
  device: Pick<Device, "kind" | "compute">,
  trains = true,
): number => maxOf(holds.map((adapter) => adapterBytes(spec, layers, adapter, device, trains)));

/** Elements of an adapter's gradients on a stage. */
export const gradientElements = (spec: ModelSpec, layers: LayerRange, adapter: PoolAdapter): number =>
  layoutAdapter(spec, layers, adapter).size;

/** Bytes of a stage's pool that has room for `blocks` bytes of adapters, and these buffers for gradients. */
export const poolBytes = (
  spec: ModelSpec,
  layers: LayerRange,
  { slots, gradients }: Pick<StageSizes, "slots" | "gradients">,
  blocks: number,
  kind: Device["kind"],
): number => tableBytes({ spec, layers, slots }) + gradientBytes(gradients, kind) + blocks;

/** Bytes of `slots` adapters, those of `blocks` that take most; where there are fewer, others may be like the largest. */
export function mostBytes(blocks: readonly number[], slots: number): number {
  const sorted = blocks.toSorted((a, b) => b - a);
  return sum(sorted.slice(0, slots)) + Math.max(0, slots - blocks.length) * (sorted[0] ?? 0);
}

/** How many of the adapters that take least have room in `bytes`, at most. */
export function countThatFit(blocks: readonly number[], bytes: number): number {
  let left = bytes;
  for (const [count, block] of blocks.toSorted((a, b) => a - b).entries()) {
    left -= block;
    if (left < 0) return count;
  }
  return blocks.length;
}

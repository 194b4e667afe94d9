// What adapters take of a stage: each its own block, and their rows of s = A drop(x) in a micro-batch. Both are sums over
// adapters: what one takes depends on no other.

import { maxOf, range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type Device, GRANULARITY } from "../device/device.ts";
import type { StageSizes } from "../engine/buffers.ts";
import { adapterBytes, tableBytes } from "../engine/pool-memory.ts";
import { GROUP_NAMES, type Group, GROUPS } from "../families/linears.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { type LayerRange, widthIn } from "../methods/layout.ts";
import { DEFINITIONS, PEFT_METHODS, type PeftMethod } from "../methods/registry.ts";

/**
 * What a slot holds for one adapter of a run, one after the other: it, and what its preferences are measured against.
 * `rows`: padded rows of its largest pass.
 */
export type SlotNeed = { readonly holds: readonly PoolAdapter[]; readonly rows: number };

/**
 * `slots` needs: those given, and where there are fewer, others as large as the largest of these in each respect, for
 * adapters that join later.
 */
function inSlots(needs: readonly SlotNeed[], slots: number): readonly SlotNeed[] {
  const more = Math.max(0, slots - needs.length);
  const largest = { holds: needs.flatMap(({ holds }) => holds), rows: maxOf(needs.map(({ rows }) => rows)) };
  return [...needs, ...range(more).map(() => largest)];
}

/** Elements of s of the largest pass of at most `rows` rows, of each group that any adapter targets. */
export function lowSizes(
  needs: readonly SlotNeed[],
  slots: number,
  layers: LayerRange,
  rows: number,
): Partial<Record<Group, number>> {
  const all = inSlots(needs, slots);
  const ofGroup = (group: Group): number => {
    const members = all.map(({ holds, rows: own }) => ({
      width: maxOf(holds.map((adapter) => widthIn(adapter, layers, group))),
      rows: Math.min(own, rows),
    }));
    let [elements, left] = [0, rows];
    for (const { width, rows: own } of members.toSorted((a, b) => b.width - a.width)) {
      elements += Math.min(own, left) * width;
      left -= Math.min(own, left);
    }
    return elements;
  };
  const sizes = GROUP_NAMES.map((group) => [group, ofGroup(group)] as const);
  return Object.fromEntries(sizes.filter(([, elements]) => elements > 0));
}

/** Where adapters need the whole product of a group, by their methods. */
export function productSizes(adapters: readonly PoolAdapter[]): StageSizes["products"] {
  const targeted = (method: PeftMethod) => {
    const targets = new Set(adapters.filter((of) => of.method === method).flatMap((of) => of.targets));
    return GROUP_NAMES.filter((group) => GROUPS[group].some((linear) => targets.has(linear)));
  };
  const keeping = PEFT_METHODS.filter((method) => DEFINITIONS[method].keepsProduct);
  return Object.fromEntries(keeping.map((method) => [method, targeted(method)]).filter(([, groups]) => groups!.length > 0));
}

/** Bytes of each slot's block on a stage, the largest first. */
export function blockBytes(
  spec: ModelSpec,
  layers: LayerRange,
  needs: readonly SlotNeed[],
  device: Pick<Device, "kind" | "compute">,
): number[] {
  const of = { compute: device.compute, granularity: GRANULARITY[device.kind] };
  const bytes = needs.map(({ holds }) => maxOf(holds.map((adapter) => adapterBytes(spec, layers, adapter, of))));
  return bytes.toSorted((a, b) => b - a);
}

/**
 * Bytes of a stage's pool when the adapters that take most are in its slots. `blocks` are those of the adapters that there
 * are; a slot for which there is none may get one like the largest.
 */
export const poolBytes = (spec: ModelSpec, layers: LayerRange, slots: number, blocks: readonly number[]): number =>
  tableBytes({ spec, layers, slots }) +
  sum(blocks.slice(0, slots)) +
  Math.max(0, slots - blocks.length) * (blocks[0] ?? 0);

/** The same adapters where each may fill a pass of `rows` rows. */
export const fillingPasses = (needs: readonly SlotNeed[], rows: number): SlotNeed[] =>
  needs.map(({ holds }) => ({ holds, rows }));

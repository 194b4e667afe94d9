// What the methods of some adapters have a pass compute: rows of their own at target groups, and factors of other tensors.

import type { PeftMethod } from "../../methods/registry.ts";
import { siteKey } from "../adapted/target-group.ts";
import type { Extent, Presence } from "../methods/computation.ts";
import { COMPUTATIONS } from "../methods/registry.ts";
import { type HeldAdapter, methodOf } from "./held-adapter.ts";

/** Of methods that compute rows themselves. Null: rows of the base model alone. */
export function presenceOf(adapters: readonly (HeldAdapter | null)[]): Presence {
  const methods = new Set(adapters.map((of) => (of ? methodOf(of.adapter) : "lora")).filter((name) => COMPUTATIONS[name].rows));
  const found = new Map<PeftMethod, Map<string, Extent>>();
  for (const method of methods) {
    const counts = new Map<string, number>();
    for (const of of adapters)
      if (of?.adapter.method === method)
        for (const key of of.layout.sites.map(siteKey)) counts.set(key, (counts.get(key) ?? 0) + 1);
    found.set(method, new Map([...counts].map(([key, count]) => [key, count === adapters.length ? "all" : "some"])));
  }
  return found;
}

/** Of methods that store neither A nor B: i32[slots], 1 for those of these slots that have it. Absent where none has. */
export function expandingOf(
  slots: Iterable<number>,
  held: readonly (HeldAdapter | null)[],
): ReadonlyMap<PeftMethod, Int32Array<ArrayBuffer>> {
  const found = new Map<PeftMethod, Int32Array<ArrayBuffer>>();
  for (const slot of slots) {
    const of = held[slot];
    if (!of || !COMPUTATIONS[methodOf(of.adapter)].expansion) continue;
    const method = methodOf(of.adapter);
    if (!found.has(method)) found.set(method, new Int32Array(held.length));
    found.get(method)![slot] = 1;
  }
  return found;
}

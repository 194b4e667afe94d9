// Which target groups have rows that a method computes itself, in a pass of some adapters.

import type { PeftMethod } from "../methods/registry.ts";
import { type HeldAdapter, methodOf } from "./held-adapter.ts";
import type { Extent, Presence } from "./methods/computation.ts";
import { COMPUTATIONS } from "./methods/registry.ts";
import { siteKey } from "./target-group.ts";

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

// What a plan's adapters are set to that is not what it may be thought to be, for people.

import type { AdapterPlan } from "../../plan/plan.ts";
import { differingKeys } from "./comparable.ts";
import { rateNotices } from "./rate-notices.ts";

type Settings = Pick<AdapterPlan, "name" | "steps" | "recipe">;

/** Sweeps whose adapters are dropped by held-out losses that are of different rows. */
function sweepNotices(adapters: readonly Settings[]): string[] {
  const members = adapters.map(({ recipe }) => recipe).filter(({ halving }) => halving !== null);
  return [...Map.groupBy(members, ({ halving }) => halving!.group)].flatMap(([group, of]) => {
    const keys = of.every(({ metrics }) => metrics?.best !== undefined) ? [] : differingKeys(of);
    if (keys.length === 0) return [];
    return [
      `${group}: its halving compares held-out losses of adapters with another ${keys.join(", ")}, which are no measure of each other; ` +
        "compare them by a metric of your own (metrics with best)",
    ];
  });
}

/** Notices of learning rates and sweeps. */
export const settingNotices = (adapters: readonly Settings[]): string[] => [
  ...rateNotices(adapters),
  ...sweepNotices(adapters),
];

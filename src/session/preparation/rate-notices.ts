// What becomes of learning rates that are not what a recipe may be thought to say, for people.

import { count, counted } from "../../base/units.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import { onlyWarms, rateFactor } from "../../schedule/rate.ts";

/** Notices of adapters whose warm-up lasts as long as their training, or longer, and of a lowest rate that none comes to. */
export function rateNotices(adapters: readonly Pick<AdapterPlan, "name" | "steps" | "recipe">[]): string[] {
  const texts = adapters.flatMap(({ name, steps, recipe: { schedule, optimizer } }) => {
    const { name: scheduler, minRatio } = schedule;
    const idle = `min_lr_ratio = ${minRatio} does nothing with the scheduler "${scheduler}", whose rate does not fall`;
    const idles = scheduler === "constant" && minRatio > 0 && minRatio < 1 ? [{ name, text: idle }] : [];
    if (steps === 1 || !onlyWarms(schedule, steps)) return idles;
    const highest = optimizer.learningRate * rateFactor(schedule, steps - 1, steps);
    const text =
      `the learning rate rises in all ${counted(steps, "step")} (warmup = ${count(schedule.warmup)}), to ` +
      `${Number(highest.toPrecision(3))} of ${optimizer.learningRate}; lower warmup, which below 1 is a share of the steps`;
    return [...idles, { name, text }];
  });
  return [...Map.groupBy(texts, ({ text }) => text)].map(
    ([text, of]) => `${of[0]!.name}${of.length > 1 ? ` and ${of.length - 1} more` : ""}: ${text}`,
  );
}

// Learning rates: constant, linear and cosine with warm-up, as Hugging Face's get_scheduler defines them.

export type RateSchedule = {
  readonly name: "constant" | "linear" | "cosine";
  /** Below 1: a share of all steps; else steps. */
  readonly warmup: number;
  /** The rate at the end, as a share of the peak. */
  readonly minRatio: number;
};

/**
 * A share is rounded up, as Hugging Face does, but for one of less than a step: the first warm-up step has a rate of 0. A
 * number of steps may be more than there are: the rates then rise as slowly as it says, and do not come to the peak.
 */
export function warmupSteps({ warmup }: RateSchedule, steps: number): number {
  if (warmup >= 1) return warmup;
  return warmup * steps < 1 ? 0 : Math.ceil(warmup * steps);
}

/** What the peak rate is multiplied by in step `step` (0 is the first) of `steps`. */
export function rateFactor(schedule: RateSchedule, step: number, steps: number): number {
  const warm = warmupSteps(schedule, steps);
  if (step < warm) return step / Math.max(1, warm);
  if (schedule.name === "constant") return 1;
  const progress = (step - warm) / Math.max(1, steps - warm);
  const left = schedule.name === "linear" ? 1 - progress : 0.5 * (1 + Math.cos(Math.PI * progress));
  return schedule.minRatio + (1 - schedule.minRatio) * Math.max(0, left);
}

/** Whether all of an adapter's steps are warm-up: the rate never comes to the peak. */
export const onlyWarms = (schedule: RateSchedule, steps: number): boolean => warmupSteps(schedule, steps) >= steps;

/** Whether any of an adapter's steps changes a weight: whether its learning rate is above 0 in fp32. */
export function learns(schedule: RateSchedule, peak: number, steps: number): boolean {
  for (let step = 0; step < steps; step++) if (Math.fround(peak * rateFactor(schedule, step, steps)) > 0) return true;
  return false;
}

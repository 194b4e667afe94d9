// Learning rates: constant, linear and cosine with warm-up, as Hugging Face's get_scheduler defines them.

export type RateSchedule = {
  readonly name: "constant" | "linear" | "cosine";
  /** Below 1: a share of all steps; else steps. */
  readonly warmup: number;
  /** The rate at the end, as a share of the peak. */
  readonly minRatio: number;
};

export const warmupSteps = ({ warmup }: RateSchedule, steps: number): number =>
  warmup < 1 ? Math.ceil(warmup * steps) : Math.min(warmup, steps);

/** What the peak rate is multiplied by in step `step` (0 is the first) of `steps`. */
export function rateFactor(schedule: RateSchedule, step: number, steps: number): number {
  const warm = warmupSteps(schedule, steps);
  if (step < warm) return step / Math.max(1, warm);
  if (schedule.name === "constant") return 1;
  const progress = (step - warm) / Math.max(1, steps - warm);
  const left = schedule.name === "linear" ? 1 - progress : 0.5 * (1 + Math.cos(Math.PI * progress));
  return schedule.minRatio + (1 - schedule.minRatio) * Math.max(0, left);
}

// Adapters that learn from rewards of their own answers, on a GPU: alone, next to others, in turns and after a kill the same
// bytes, and answers become better.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { learnsAlike, NAMES, RewardedPlace, rewardsRise, STEPS } from "../helpers/grpo.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("learning from rewards on the GPU", () => {
  describe.each(["bf16", "fp32"] as const)("in %s", (precision) => {
    let place: RewardedPlace | null = null;
    const on = () => place!;
    const alone: string[] = [];
    beforeAll(async () => {
      place = new RewardedPlace("cuda", precision);
      for (const one of on().adapters(STEPS)) alone.push(await on().done(on().head() + one));
    });
    afterAll(() => place?.[Symbol.dispose]());

    learnsAlike(on, () => alone, 1);
    rewardsRise(on);
    if (precision === "fp32")
      test("the first steps are the cpu device's: answers, rewards, losses and what they are divided by", async () => {
        using cpu = new RewardedPlace("cpu", "fp32");
        for (const [i, one] of cpu.adapters(STEPS).entries()) {
          const name = NAMES[i]!;
          const [here, there] = [on().left(alone[i]!, name), cpu.left(await cpu.done(cpu.head() + one), name)];
          const first = <T extends { readonly step: number }>(all: readonly T[]) => all.filter(({ step }) => step === 1);
          const texts = (of: typeof here) => first(of.answers).map(({ completion }) => completion);
          expect(texts(here)).toEqual(texts(there));
          for (const key of ["loss", "grad_norm", "reward", "kl"])
            if (there.steps[0]![key] !== undefined)
              expect(Number(here.steps[0]![key]), `${name}: ${key}`).toBeCloseTo(Number(there.steps[0]![key]), 4);
        }
      });
  });
});

// REINFORCE on the primitives: an adapter learns to say what is rewarded. tests/cpu/primitives.test.ts runs it.

import type { Recipe } from "../../src/recipe/recipe.ts";
import { openPrimitives } from "../../src/session/primitives/open.ts";
import { rowOf } from "../../src/session/primitives/primitives.ts";

export type Task = {
  /** A base model and one adapter; its data is not read. */
  readonly recipe: Recipe;
  readonly prompts: readonly (readonly number[])[];
  readonly reward: (completion: readonly number[]) => number;
  readonly rounds: number;
  /** Samples of a prompt, and tokens of each. */
  readonly group: number;
  readonly maxTokens: number;
};

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

/** Mean rewards, round by round. An advantage is a sample's reward less the mean of its group's. */
export async function reinforce({ recipe, prompts, reward, rounds, group, maxTokens }: Task): Promise<number[]> {
  const name = recipe.adapters[0]!.name;
  const capacity = Math.max(...prompts.map(({ length }) => length)) + maxTokens;
  await using model = await openPrimitives(recipe, { cache: { sequences: prompts.length * group, capacity } });
  const rewards: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const sampling = { temperature: 1 };
    const groups = await model.sample(name, prompts, { sampling, maxTokens, n: group, seed: round * group });
    const scored = groups.map((samples) => samples.map(({ ids }) => reward(ids)));
    const rows = groups.flatMap((samples, i) =>
      samples.map(({ ids }, j) => rowOf(prompts[i]!, ids, (scored[i]![j]! - mean(scored[i]!)) / (group * prompts.length))),
    );
    await model.forwardBackward(name, rows);
    await model.step(name);
    rewards.push(mean(scored.flat()));
  }
  return rewards;
}

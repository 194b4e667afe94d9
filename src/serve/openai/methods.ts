// What OpenAI calls methods of fine-tuning, as objectives of a recipe.

import type { Grader } from "../../session/rollouts/rewards.ts";

type ObjectiveTable = string | ({ readonly name: string } & Readonly<Record<string, unknown>>);
/** What a job says of its objective. */
export type MethodAsked = {
  readonly beta: number | null;
  readonly grader?: Grader | undefined;
  readonly generations?: number | undefined;
  readonly max_new_tokens?: number | undefined;
};
type MethodDefinition = {
  readonly objective: (of: MethodAsked) => ObjectiveTable;
  /** What a row is: turns with answers, two answers to the same, or turns to answer. */
  readonly rows: "turns" | "pairs" | "prompts";
  /** Null where it has none. */
  readonly defaultBeta: number | null;
};

export const METHODS = {
  supervised: { objective: () => "sft", rows: "turns", defaultBeta: null },
  dpo: {
    objective: ({ beta }) => ({ name: "dpo", ...(beta === null ? {} : { beta }) }),
    rows: "pairs",
    defaultBeta: 0.1,
  },
  reinforcement: {
    objective: ({ grader, generations, max_new_tokens }) => ({ name: "grpo", reward: { grader }, generations, max_new_tokens }),
    rows: "prompts",
    defaultBeta: null,
  },
} satisfies Readonly<Record<string, MethodDefinition>>;

export type Method = keyof typeof METHODS;
export const methodOf = (name: Method): MethodDefinition => METHODS[name];

// What OpenAI calls methods of fine-tuning, as objectives of a recipe.

type ObjectiveTable = string | { readonly name: string; readonly beta?: number };
type MethodDefinition = {
  readonly objective: (beta: number | null) => ObjectiveTable;
  /** Rows have two answers; the accuracy is that of the choice between them. */
  readonly isPaired: boolean;
  /** Null where it has none. */
  readonly defaultBeta: number | null;
};

export const METHODS = {
  supervised: { objective: () => "sft", isPaired: false, defaultBeta: null },
  dpo: {
    objective: (beta) => ({ name: "dpo", ...(beta === null ? {} : { beta }) }),
    isPaired: true,
    defaultBeta: 0.1,
  },
} satisfies Readonly<Record<string, MethodDefinition>>;

export type Method = keyof typeof METHODS;
export const methodOf = (name: Method): MethodDefinition => METHODS[name];

// What an adapter is trained for, as plain data: it stands in recipes and travels to the stages. What each means is src/objective's.

/** Adapters as they are before their first step ("start": the base model, or the adapter that is continued), the base, or a PEFT folder. */
export type Reference = "start" | "base" | { readonly folder: string };

export type Objective =
  | { readonly name: "sft" }
  | {
      readonly name: "dpo";
      readonly loss: "sigmoid" | "hinge" | "ipo";
      readonly beta: number;
      readonly labelSmoothing: number;
      readonly reference: Reference;
    }
  | {
      readonly name: "cpo";
      readonly loss: "sigmoid" | "hinge";
      readonly beta: number;
      readonly labelSmoothing: number;
      /** Weight of the chosen answer's own loss. */
      readonly alpha: number;
    }
  | { readonly name: "simpo"; readonly beta: number; readonly gamma: number; readonly labelSmoothing: number }
  | { readonly name: "orpo"; readonly lambda: number }
  | {
      readonly name: "kto";
      readonly beta: number;
      readonly desirable: number;
      readonly undesirable: number;
      readonly reference: Reference;
    }
  | {
      readonly name: "cit";
      /** The most that the contrast counts, beside the answer's own loss. */
      readonly lambda: number;
      readonly temperature: number;
      /** What stands for a sequence: its last token's hidden state, or the mean of all. */
      readonly pooling: "last" | "mean";
    };

/** Objectives over rows of two sequences: preferences, and the paraphrases of contrastive instruction tuning. */
export type Preference = Exclude<Objective, { readonly name: "sft" }>;

/** The reference that it measures against; null for those that need none. */
export const referenceOf = (objective: Objective): Reference | null => ("reference" in objective ? objective.reference : null);

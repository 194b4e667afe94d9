// A sweep: lists over an adapter's values, one adapter for each combination.

import type { AdapterTable } from "./schema.ts";

/** Adapters that all sweeps of a recipe together may make. */
export const MOST_ADAPTERS = 1000;

/** One combination of a sweep: the adapter's own name, longer by what was chosen, and the choices. */
export type Choice = {
  readonly name: string;
  readonly values: Readonly<Record<string, unknown>>;
};

/** "learning_rate", 0.0001 as "lr1e-4"; lists and tables by their place in the sweep. */
function label(key: string, value: unknown, index: number): string {
  const short: Readonly<Record<string, string>> = {
    learning_rate: "lr",
    batch_size: "batch",
    weight_decay: "wd",
    dropout: "drop",
  };
  const simple = typeof value === "number" || typeof value === "boolean" || typeof value === "string";
  const small = typeof value === "number" && value !== 0 && Math.abs(value) < 0.01;
  const exact = small ? value.toExponential() : simple ? `${value}` : `${index + 1}`;
  const text = exact
    .replaceAll(".", typeof value === "number" ? "p" : "-")
    .replace("e+", "e")
    .replace(/[^A-Za-z0-9-]+/g, "-");
  return `${short[key] ?? key.replaceAll("_", "")}${text}`;
}

/** All combinations, the last key changing fastest; the adapter alone when it has no sweep. */
export function choicesOf(adapter: AdapterTable): Choice[] {
  let choices: Choice[] = [{ name: adapter.name, values: {} }];
  for (const [key, values] of Object.entries(adapter.sweep ?? {}))
    choices = choices.flatMap((choice) =>
      values.map((value, index) => ({
        name: `${choice.name}-${label(key, value, index)}`,
        values: { ...choice.values, [key]: value },
      })),
    );
  return choices;
}

/** How many adapters a sweep makes, without making them. */
export const countChoices = (adapter: AdapterTable): number =>
  Object.values(adapter.sweep ?? {}).reduce((product, values) => product * values.length, 1);

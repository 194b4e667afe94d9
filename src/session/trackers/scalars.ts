// What trackers of experiments get of an adapter, under the names that TRL gives them.

import type { EventOf, SessionEvent } from "../events/events.ts";

export type ScalarEvent = {
  readonly adapter: string;
  readonly step: number;
  readonly scalars: Readonly<Record<string, number>>;
};

/** `stepsPerEpoch` of the adapter with an index. Null for events that hold no numbers of an adapter. */
export function scalarsOf(event: SessionEvent, stepsPerEpoch: (index: number) => number): ScalarEvent | null {
  if (event.type === "step") {
    const { adapter, step, loss, gradNorm, learningRate, tokensPerSecond, busiest } = event;
    const scalars = {
      "train/loss": loss,
      "train/grad_norm": gradNorm,
      "train/learning_rate": learningRate,
      "train/epoch": step / stepsPerEpoch(event.index),
      "train/tokens_per_second": tokensPerSecond,
      ...(busiest === undefined ? {} : { "train/busiest_expert": busiest }),
      ...preferenceScalars(event.preference),
      ...Object.fromEntries(Object.entries(event.rollouts ?? {}).map(([name, value]) => [`train/${name}`, value])),
    };
    return { adapter, step, scalars: finiteOf(scalars) };
  }
  if (event.type !== "evaluation") return null;
  const { adapter, step, loss, exact, rows, isPreference } = event;
  const right = isPreference ? "eval/rewards/accuracies" : "eval/exact_match";
  const own = Object.entries(event.metrics ?? {}).map(([name, value]) => [`eval/${name}`, value]);
  return {
    adapter,
    step,
    scalars: finiteOf({ "eval/loss": loss, [right]: rows > 0 ? exact / rows : null, ...Object.fromEntries(own) }),
  };
}

/** Of CIT, which TRL has not, as in metrics.jsonl. */
function preferenceScalars(of: EventOf<"step">["preference"]): Readonly<Record<string, number | null>> {
  if (of === null) return {};
  const { accuracy, margin, contrast } = of;
  if (contrast === null) return { "train/rewards/accuracies": accuracy, "train/rewards/margins": margin };
  return { "train/accuracy": accuracy, "train/similarity_margin": margin, "train/contrastive_loss": contrast };
}

const finiteOf = (scalars: Readonly<Record<string, number | null>>): Record<string, number> =>
  Object.fromEntries(Object.entries(scalars).filter((entry): entry is [string, number] => entry[1] !== null));

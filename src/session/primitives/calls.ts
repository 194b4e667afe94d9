// What calls of the primitives are given, and what they give.

import type { Sampling } from "../../base/sample.ts";
import { range } from "../../base/shape.ts";
import type { GroupPolicy } from "../../objectives/group-policy.ts";
import type { PolicyLoss } from "../../objectives/policy.ts";
import type { Objective } from "../../objectives/registry.ts";
import type { Row } from "../../schedule/pack.ts";
import type { NextToken } from "../decoding/decoding.ts";
import type { Resident, SlotsOptions } from "./slots.ts";

export type { PolicyLoss } from "../../objectives/policy.ts";
export { inputLength, type Row } from "../../schedule/pack.ts";

export type PrimitivesOptions = Pick<SlotsOptions<Resident>, "idleMs" | "turnMs"> & {
  /** Aborted, with its reason, when a stage is gone. */
  readonly lost?: AbortSignal | null;
  /** Of owners of adapters: the weights of their shares in what is computed. Left out, they are equal. */
  readonly weightOf?: (owner: string) => number;
};

/** How the loss of rows is made. */
export type LossOptions = {
  /** Left out, the adapter's own. */
  readonly objective?: Objective;
  /** Of each row, the log-probabilities of its two sequences under the reference of an objective that has one. */
  readonly references?: readonly (readonly [own: number, other: number])[];
  /** The loss of rows that are `sampled`, in place of the objective. */
  readonly policy?: PolicyLoss;
  /** The same of rows that are completions of groups. */
  readonly group?: GroupPolicy;
  /** Of the distribution whose log-probabilities the losses are; left out, 1. */
  readonly temperature?: number;
  /** Rows of a micro-batch at most; left out, the adapter's. */
  readonly batchSize?: number;
  /** Without gradients: the number of likeliest tokens to find at each target. */
  readonly top?: number;
};

/** The norm of the gradient before it was clipped, and how many steps the adapter has made. */
export type StepMade = { readonly gradNorm: number; readonly step: number };

export type SampleOptions = {
  /** Left out, the likeliest token. */
  readonly sampling?: Partial<Sampling>;
  readonly maxTokens: number;
  /** Tokens that end a sample; they are part of it. */
  readonly stops?: Iterable<number>;
  /** Sample `i` of a prompt is that of `mlora generate --seed` with `seed + i`. */
  readonly seed?: number;
  readonly n?: number;
  /** All logits are asked for with each token. */
  readonly logits?: boolean;
  /** By whose share the samples have their turn; left out, the adapter's owner. */
  readonly owner?: string;
  /** Aborted: the samples end with its reason. */
  readonly signal?: AbortSignal | undefined;
};
/** A token of sample `sample` of a prompt. */
export type SampledToken = NextToken & { readonly prompt: number; readonly sample: number };
/** `logProbs` f32 are those of the model, whatever the temperature. */
export type Sample = { readonly ids: readonly number[]; readonly logProbs: Float32Array; readonly end: "stop" | "length" };

/** Gathers the tokens of `n` samples of each prompt as they come. */
export function gatherSamples(prompts: number, n: number) {
  const found = range(prompts).map(() =>
    range(n).map(() => ({ ids: [] as number[], logProbs: [] as number[], isStopped: false })),
  );
  return {
    got({ prompt, sample, token, end, logProb }: SampledToken): void {
      const of = found[prompt]![sample]!;
      of.ids.push(token);
      of.logProbs.push(logProb);
      of.isStopped = end === "stop";
    },
    samples: (): Sample[][] =>
      found.map((all) =>
        all.map(({ ids, logProbs, isStopped }) => {
          return { ids, logProbs: Float32Array.from(logProbs), end: isStopped ? "stop" : "length" };
        }),
      ),
  };
}

/** A row of a prompt and what follows it, whose tokens are the targets, with a weight for all or for each. */
export function rowOf(prompt: ArrayLike<number>, completion: ArrayLike<number>, weights?: number | ArrayLike<number>): Row {
  const ids = Int32Array.from([...Array.from(prompt), ...Array.from(completion)]);
  const mask = new Uint8Array(ids.length).fill(1, prompt.length);
  if (weights === undefined) return { ids, mask };
  if (typeof weights === "number") return { ids, mask, weights: new Float32Array(ids.length).fill(weights, prompt.length) };
  const all = new Float32Array(prompt.length + weights.length);
  all.set(weights, prompt.length);
  return { ids, mask, weights: all };
}

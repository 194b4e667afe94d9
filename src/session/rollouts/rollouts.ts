// Answers that an adapter gives to a batch of prompts with its present weights, their rewards, and the rows that it learns of
// them. A function of its own data, settings and weights alone: the same with others in the run, and after any interruption.

import { hash } from "../../base/rng.ts";
import { range } from "../../base/shape.ts";
import { answerEnds } from "../../data/ends.ts";
import { tokenizerOf } from "../../data/row-reader.ts";
import { loadTokenizer, type Tokenizer } from "../../data/tokenizer.ts";
import { stopTokens } from "../../files/generation.ts";
import { tokenizerFolder } from "../../files/tokenizer.ts";
import { advantagesOf } from "../../objectives/advantages.ts";
import type { GroupPolicy } from "../../objectives/group-policy.ts";
import { type Grpo, groupPolicyOf, rewardsOf, scalesOf } from "../../objectives/grpo.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterPlan } from "../../plan/plan.ts";
import type { AdapterRecipe } from "../../recipe/recipe.ts";
import { inputLength, type Row } from "../../schedule/pack.ts";
import { type StepRows, stepsOf, type Work } from "../../schedule/steps.ts";
import type { Choosing, NextToken } from "../decoding/decoding.ts";
import { type Asked, allRewards } from "./rewards.ts";
import { rowOf } from "./rows.ts";

export type Answer = {
  /** Of the training rows, and which of its answers. */
  readonly row: number;
  readonly sample: number;
  readonly prompt: string;
  readonly completion: string;
  readonly tokens: number;
  /** It ended because it had as many tokens as it may have. */
  readonly isTruncated: boolean;
  readonly rewards: readonly (number | null)[];
  readonly advantage: number;
};

/** The answers that an adapter learns in its steps `from` to before `until`. */
export type Rollouts = {
  readonly from: number;
  readonly until: number;
  readonly work: Work;
  readonly rows: readonly Row[];
  readonly policy: GroupPolicy;
  /** Of the distribution that answers were sampled from, which is the one that is learned. */
  readonly temperature: number;
  readonly answers: readonly Answer[];
  /** Of each answer, the weighted sum of its rewards; NaN for one that none says anything of. */
  readonly rewards: readonly number[];
  readonly zeroStd: number;
};

/** A prompt to answer with `limit` tokens at most; `got` is called with each token. */
export type ToAnswer = Choosing & {
  readonly prompt: readonly number[];
  readonly limit: number;
  readonly seed: number;
  readonly got: (next: Pick<NextToken, "token" | "end">) => void;
};

/** An adapter with its present weights, as answers are made with it. */
export type Answering = {
  /** Resolves when all prompts are answered. Throws what `signal` is aborted with. */
  readonly answer: (all: readonly ToAnswer[], signal: AbortSignal) => Promise<void>;
  /**
   * Log-probabilities of each row's tokens at a temperature, 0 where a token is no target; under the base model by itself, or
   * the adapter. Rows are cut into micro-batches of `batchSize`, as they are for learning.
   */
  readonly logProbs: (of: "adapter" | "base", rows: readonly Row[], asked: ScoreOptions) => Promise<Float32Array[]>;
};
export type ScoreOptions = { readonly temperature: number; readonly batchSize: number; readonly policy: GroupPolicy };

export type RolloutsOptions = {
  /** Of the base model. */
  readonly path: string;
  readonly tokensPerMicrobatch: number;
  readonly notice: (adapter: AdapterPlan, text: string) => void;
};

/** An adapter that is to learn its steps from `from` on, and its training rows. */
export type Learner = { readonly plan: AdapterPlan; readonly train: readonly Row[]; readonly from: number };

type Sampled = { readonly prompt: Int32Array; readonly ids: number[]; end: "stop" | "length" | null };

/** Separates its random numbers from those of others with the same seed. */
const TAG = 0x6f77;

export class RolloutMaker {
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly number[];

  /** Throws a RequestError where the model's tokenizer cannot be read. */
  constructor(private readonly options: RolloutsOptions) {
    const { path } = options;
    this.#tokenizer = loadTokenizer(tokenizerFolder(path));
    this.#stops = stopTokens(path);
  }

  /**
   * The answers for a learner's next steps. Throws what `signal` is aborted with, and a RunError, `reward.failed`, where a
   * reward cannot be had.
   */
  async make({ plan, train, from }: Learner, on: Answering, signal: AbortSignal): Promise<Rollouts> {
    const { recipe } = plan;
    const settings = rolloutsOf(recipe.objective)!;
    const batch = Math.floor(from / settings.iterations);
    const until = Math.min(plan.steps, (batch + 1) * settings.iterations);
    const { rows } = stepsOf(plan.prompts!, this.options.tokensPerMicrobatch, batch).next().value as StepRows;
    const asked = rows.flatMap((row) => range(settings.generations).map((sample) => ({ row, sample })));
    const sampled = await this.#sample(recipe, settings, on, train, asked, batch, signal);
    const texts = sampled.map((of) => this.#textOf(of));
    const rewards = await this.#rewards(plan, settings, train, asked, sampled, texts, signal);
    const weights = rewardsOf(settings).map(({ weight }) => weight);
    const judged = advantagesOf(rewards, { ...settings, weights });
    const isLearned = (i: number) => !(settings.maskTruncated && sampled[i]!.end === "length");
    const scales = scalesOf(
      settings,
      sampled.map(({ ids }, i) => (isLearned(i) ? ids.length : 0)),
    );
    const plain = sampled.map(({ prompt, ids }, i) => rowOf(prompt, ids, isLearned(i)));
    // What is sampled once and learned once is as likely as it is now.
    const { temperature, iterations, beta } = settings;
    const policy = groupPolicyOf(settings);
    const scoring = { temperature, batchSize: plan.work.batchSize, policy };
    const old = iterations === 1 ? null : await on.logProbs("adapter", plain, scoring);
    const reference = beta === 0 ? null : await on.logProbs("base", plain, scoring);
    signal.throwIfAborted();
    return {
      ...{ from, until, policy, temperature, rewards: judged.rewards, zeroStd: judged.zeroStd },
      work: {
        lengths: plain.map(inputLength),
        batchSize: recipe.batchSize * settings.generations,
        ...{ accumulation: recipe.accumulation, epochs: null, steps: until, shuffle: false, seed: recipe.seed },
      },
      rows: plain.map((row, i) => {
        const of = { advantage: judged.advantages[i]!, scale: scales[i]! };
        return { ...row, completion: { ...of, old: old?.[i] ?? null, reference: reference?.[i] ?? null } };
      }),
      answers: asked.map((of, i) => ({
        ...of,
        ...texts[i]!,
        tokens: sampled[i]!.ids.length,
        isTruncated: sampled[i]!.end === "length",
        rewards: rewards[i]!,
        advantage: judged.advantages[i]!,
      })),
    };
  }

  async #sample(
    recipe: AdapterRecipe,
    { maxNewTokens, temperature, topK, topP }: Grpo,
    on: Answering,
    train: readonly Row[],
    asked: readonly { readonly row: number; readonly sample: number }[],
    batch: number,
    signal: AbortSignal,
  ): Promise<readonly Sampled[]> {
    const ends = answerEnds(tokenizerOf(recipe, this.#tokenizer));
    const stops = new Set([...this.#stops, ...ends]);
    const sampled = asked.map(({ row }): Sampled => ({ prompt: train[row]!.ids, ids: [], end: null }));
    const all = sampled.map(
      (of, i): ToAnswer => ({
        ...{ prompt: [...of.prompt], limit: maxNewTokens, stops, seed: hash(recipe.seed, batch, i, TAG) },
        sampling: { temperature, topK, topP },
        got: ({ token, end }) => {
          of.ids.push(token);
          of.end = end;
        },
      }),
    );
    await on.answer(all, signal);
    return sampled;
  }

  /** As rewards read it: the prompt with its marks, the answer without such as mean nothing to a reader, as TRL has it. */
  #textOf({ prompt, ids, end }: Sampled): Omit<Asked, "columns"> {
    const { decode, decodeText } = this.#tokenizer;
    return { prompt: decode([...prompt]), completion: decodeText(end === "stop" ? ids.slice(0, -1) : ids) };
  }

  /** Of each answer, a number by each reward. */
  async #rewards(
    plan: AdapterPlan,
    settings: Grpo,
    train: readonly Row[],
    asked: readonly { readonly row: number }[],
    sampled: readonly Sampled[],
    texts: readonly Omit<Asked, "columns">[],
    signal: AbortSignal,
  ): Promise<(number | null)[][]> {
    const all = texts.map((text, i) => ({ ...text, columns: train[asked[i]!.row]!.columns! }));
    const notice = (text: string) => this.options.notice(plan, text);
    const found = await allRewards(rewardsOf(settings), all, notice, signal);
    return sampled.map((_, i) => found.map((of) => of[i]!));
  }
}

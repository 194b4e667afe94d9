// Answers that an adapter gives to a batch of prompts with its present weights, their rewards, and the rows that it learns of
// them. A function of its own data, settings and weights alone: the same with others in the run, and after any interruption.

import { hash } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { shortPositions } from "../base/spec.ts";
import type { Bus } from "../bus/bus.ts";
import { tokenizerOf } from "../data/dataset.ts";
import { answerEnds } from "../data/ends.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { stopTokens } from "../files/generation.ts";
import { tokenizerFolder } from "../files/tokenizer.ts";
import { advantagesOf } from "../objectives/advantages.ts";
import type { GroupPolicy } from "../objectives/group-policy.ts";
import { type Grpo, groupPolicyOf, rewardsOf, scalesOf } from "../objectives/grpo.ts";
import { rolloutsOf } from "../objectives/registry.ts";
import { tileOf } from "../plan/generation.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { inputLength, type Row } from "../schedule/pack.ts";
import { type StepRows, stepsOf, type Work } from "../schedule/steps.ts";
import type { AdapterState } from "./adapter-state.ts";
import { engineOver } from "./decoding.ts";
import { PassTurns } from "./pass-turns.ts";
import { readsByRow } from "./reads-by-row.ts";
import { type Asked, allRewards } from "./rewards.ts";
import { BASE, logProbsOf, rowOf } from "./rollout-rows.ts";
import { Sampler } from "./sampler.ts";
import { Shares } from "./shares.ts";

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

export type RolloutsOptions = {
  readonly plan: Plan;
  readonly bus: Bus;
  readonly notice: (adapter: AdapterPlan, text: string) => void;
};

type Sampled = { readonly prompt: Int32Array; readonly ids: number[]; end: "stop" | "length" | null };

/** Separates its random numbers from those of others with the same seed. */
const TAG = 0x6f77;

export class RolloutMaker {
  readonly #sampler: Sampler;
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly number[];

  /** Throws a RequestError where the model's tokenizer cannot be read. */
  constructor(private readonly options: RolloutsOptions) {
    const { bus, plan } = options;
    const { sizes } = plan.stages[0]!;
    const engine = { tile: tileOf(plan.device), shortPositions: shortPositions(plan.spec), readsByRow: readsByRow(plan) };
    this.#sampler = new Sampler(
      engineOver(bus, { ...engine, sizes: { ...sizes, cache: sizes.cache! } }),
      new PassTurns(),
      new Shares(),
    );
    const { path } = plan.recipe.model;
    this.#tokenizer = loadTokenizer(tokenizerFolder(path));
    this.#stops = stopTokens(path);
  }

  /**
   * The answers for the adapter's next steps. Throws what `signal` is aborted with, and a RunError, `reward.failed`, where a
   * reward cannot be had.
   */
  async make(adapter: AdapterState, signal: AbortSignal): Promise<Rollouts> {
    const { plan, data, steps: from, slot } = adapter;
    const { recipe } = plan;
    const settings = rolloutsOf(recipe.objective)!;
    const batch = Math.floor(from / settings.iterations);
    const until = Math.min(plan.steps, (batch + 1) * settings.iterations);
    const { rows } = stepsOf(plan.prompts!, this.options.plan.tokensPerMicrobatch, batch).next().value as StepRows;
    const asked = rows.flatMap((row) => range(settings.generations).map((sample) => ({ row, sample })));
    const sampled = await this.#sample(recipe, settings, slot!, data.train, asked, batch, signal);
    const texts = sampled.map((of) => this.#textOf(of));
    const rewards = await this.#rewards(plan, settings, data.train, asked, sampled, texts, signal);
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
    const logProbs = (of: number) => logProbsOf(this.options, adapter.plan, plain, of, temperature);
    const old = iterations === 1 ? null : await logProbs(slot!);
    const reference = beta === 0 ? null : await logProbs(BASE);
    signal.throwIfAborted();
    return {
      ...{ from, until, policy: groupPolicyOf(settings), temperature, rewards: judged.rewards, zeroStd: judged.zeroStd },
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
    slot: number,
    train: readonly Row[],
    asked: readonly { readonly row: number; readonly sample: number }[],
    batch: number,
    signal: AbortSignal,
  ): Promise<readonly Sampled[]> {
    const ends = answerEnds(tokenizerOf(recipe, this.#tokenizer));
    const stops = new Set([...this.#stops, ...ends]);
    const sampled = asked.map(({ row }): Sampled => ({ prompt: train[row]!.ids, ids: [], end: null }));
    const sequences = sampled.map((of, i) => ({
      ...{ adapter: slot, owner: recipe.name, prompt: [...of.prompt], limit: maxNewTokens, stops },
      seed: hash(recipe.seed, batch, i, TAG),
      sampling: { temperature, topK, topP },
      got: ({ token, end }: { readonly token: number; readonly end: Sampled["end"] }) => {
        of.ids.push(token);
        of.end = end;
      },
    }));
    await this.#sampler.run(sequences, signal);
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

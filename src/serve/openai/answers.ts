// Answers to prompts under a model: what chat and completions have in common.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { randomSeed } from "../../base/secret.ts";
import { logProb, topOf } from "../../session/decoding/distribution.ts";
import type { TextModel } from "../../session/generation/text-model.ts";
import { TextStream } from "../../session/generation/text-stream.ts";
import type { Primitives, SampledToken } from "../../session/primitives/primitives.ts";
import { ApiError, badRequest } from "../errors.ts";
import type { Models } from "../models.ts";
import type { Rates } from "../rates.ts";
import type { Usage } from "../usage.ts";

export type AnswersOptions = {
  readonly engine: Primitives;
  readonly models: Models;
  readonly texts: TextModel;
  readonly usage: Usage;
  readonly rates: Rates;
};

const within = (least: number, most: number) => v.pipe(v.number(expected("a number")), v.minValue(least), v.maxValue(most));
const whole = (least: number, most: number) => v.pipe(within(least, most), v.integer());

/** Keys of other servers that would change an answer (vLLM's), with the values that do not; an empty list or table does not. */
const OTHERS: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ...([
    ["repetition_penalty", 1],
    ["length_penalty", 1],
    ["min_p", 0],
    ["min_tokens", 0],
  ] as const),
  ...["ignore_eos", "use_beam_search", "continue_final_message", "include_stop_str_in_output"].map(
    (key) => [key, false] as const,
  ),
  ...["stop_token_ids", "bad_words", "allowed_token_ids", "logits_processors", "truncate_prompt_tokens"].map(
    (key) => [key, null] as const,
  ),
  ...["structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"].map(
    (key) => [key, null] as const,
  ),
]);
const isEmpty = (value: unknown): boolean => value == null || (typeof value === "object" && Object.keys(value).length === 0);

/** Keys of both endpoints. */
export const samplingEntries = {
  model: v.string(expected("a string")),
  temperature: v.nullish(within(0, 2)),
  top_p: v.nullish(v.pipe(within(0, 1), v.gtValue(0))),
  top_k: v.nullish(whole(-1, 2 ** 31 - 1)),
  n: v.nullish(whole(1, 128)),
  seed: v.nullish(whole(-(2 ** 53) + 1, 2 ** 53 - 1)),
  stop: v.nullish(v.union([v.string(), v.pipe(v.array(v.string()), v.maxLength(4))], expected("a string or up to 4"))),
  stream: v.nullish(v.boolean()),
  stream_options: v.nullish(v.object({ include_usage: v.nullish(v.boolean()) })),
  presence_penalty: v.nullish(v.number()),
  frequency_penalty: v.nullish(v.number()),
  logit_bias: v.nullish(v.record(v.string(), v.number())),
  ...Object.fromEntries([...OTHERS.keys()].map((key) => [key, v.optional(v.unknown())])),
};
export type SamplingBody = v.InferOutput<v.ObjectSchema<typeof samplingEntries, undefined>>;

/** Throws an ApiError for what would change the answer and is not served. */
function refuseUnserved(body: SamplingBody): void {
  for (const param of ["presence_penalty", "frequency_penalty"] as const)
    if (body[param]) throw badRequest(`'${param}' is not served: leave it out, or give 0.`, param);
  if (body.logit_bias && Object.keys(body.logit_bias).length > 0)
    throw badRequest("'logit_bias' is not served: leave it out.", "logit_bias");
  for (const [param, neutral] of OTHERS) {
    const value = (body as Readonly<Record<string, unknown>>)[param];
    if (!isEmpty(value) && value !== neutral)
      throw badRequest(`'${param}' is not served: leave it out${neutral === null ? "" : `, or give ${neutral}`}.`, param);
  }
  if (body.stop === "" || (Array.isArray(body.stop) && body.stop.includes("")))
    throw badRequest("'stop' has an empty text.", "stop");
}

/** A token with its log-probability under the model, and the likeliest ones in its place. */
export type TokenLog = { readonly id: number; readonly logprob: number; readonly top: readonly (readonly [number, number])[] };
/** What has come of a choice. `end` with its last piece. */
export type Piece = {
  readonly choice: number;
  readonly text: string;
  readonly logs: readonly TokenLog[];
  readonly end: "stop" | "length" | null;
};
export type Counted = { readonly prompt_tokens: number; readonly completion_tokens: number; readonly total_tokens: number };

export type Asked = {
  readonly tenant: string;
  readonly prompts: readonly (readonly number[])[];
  readonly body: SamplingBody;
  /** Null: as many as there is room for. */
  readonly maxTokens: number | null;
  /** The likeliest tokens that come with each token; null: no log-probabilities. */
  readonly logprobs: number | null;
};

export type Answering = {
  /** Choices, numbered over prompts times n. Rejects with what a choice fails with. */
  readonly run: (got: (piece: Piece) => void, signal: AbortSignal) => Promise<Counted>;
  readonly choices: number;
};

/** A choice has come to a stop text. */
const STOPPED = new Error("a stop text has come");

/** Checks what is asked, and has the model's adapter at hand; nothing is generated yet. Throws ApiErrors. */
export async function prepareAnswers(
  asked: Asked,
  { engine, models, texts, usage, rates }: AnswersOptions,
): Promise<Answering> {
  const { tenant, prompts, body, maxTokens, logprobs } = asked;
  refuseUnserved(body);
  const row = models.find(tenant, body.model);
  const room = Math.min(engine.plan.stages[0]!.sizes.cache!.capacity, engine.plan.spec.maxPositions);
  const tooLong = (length: number, wanted: number, param: string) =>
    new ApiError(
      400,
      `This model's maximum context length is ${room} tokens. However, you requested ${length + wanted} tokens (${length} in the prompt, ${wanted} in the completion).`,
      { param, code: "context_length_exceeded" },
    );
  for (const { length } of prompts) {
    if (length === 0) throw badRequest("The prompt has no token.", "prompt");
    if (length >= room) throw tooLong(length, maxTokens ?? 1, "messages");
    if (maxTokens !== null && length + maxTokens > room) throw tooLong(length, maxTokens, "max_tokens");
  }
  const n = body.n ?? 1;
  const seed = Number(BigInt.asUintN(32, BigInt(body.seed ?? randomSeed())));
  const sampling = { temperature: body.temperature ?? 1, topP: body.top_p ?? 1, topK: Math.max(0, body.top_k ?? 0) };
  const stops = body.stop == null ? [] : typeof body.stop === "string" ? [body.stop] : body.stop;
  await models.use(row, () => Promise.resolve()); // a fault of it is an answer's status
  const most = prompts.reduce((sum, { length }) => sum + length + n * (maxTokens ?? room - length), 0);
  const giveBack = rates.take(tenant, most);
  let completed = 0;

  const choose = async (adapter: string | null, choice: number, got: (piece: Piece) => void, signal: AbortSignal) => {
    const prompt = prompts[Math.floor(choice / n)]!;
    const stream = new TextStream(texts.decode, stops);
    const stop = new AbortController();
    let [logs, isOver] = [[] as TokenLog[], false];
    const tell = (text: string, end: Piece["end"]) => {
      if (text === "" && end === null) return;
      got({ choice, text, logs, end });
      logs = [];
    };
    const next = ({ token, end, logProb: own, logits }: SampledToken) => {
      if (isOver) return;
      completed++;
      if (end === "stop") {
        isOver = true;
        return tell(stream.end(), "stop");
      }
      if (logprobs !== null) logs.push(logits ? logOf(token, logits, logprobs) : { id: token, logprob: own, top: [] });
      const { text, isStopped } = stream.push(token);
      if (!isStopped) return tell(end === null ? text : text + stream.end(), end);
      isOver = true;
      tell(text, "stop");
      stop.abort(STOPPED);
    };
    const options = {
      sampling,
      maxTokens: maxTokens ?? room - prompt.length,
      stops: texts.stops,
      seed: (seed + (choice % n)) >>> 0,
      owner: tenant,
      logits: logprobs !== null && logprobs > 0,
    };
    try {
      await engine.stream(adapter, [prompt], { ...options, signal: AbortSignal.any([signal, stop.signal]) }, next);
    } catch (error) {
      if (error !== STOPPED) throw error;
    }
  };

  const choices = prompts.length * n;
  return {
    choices,
    async run(got, signal) {
      const failed = new AbortController();
      const both = AbortSignal.any([signal, failed.signal]);
      const all: Promise<void>[] = [];
      const using = models.use(row, async (adapter) => {
        all.push(...Array.from({ length: choices }, (_, choice) => choose(adapter, choice, got, both)));
        for (const of of all) of.catch((error) => failed.abort(error)); // the others end, too
        await Promise.allSettled(all);
      });
      await Promise.allSettled([using]);
      const completion_tokens = completed;
      const prompt_tokens = prompts.reduce((sum, { length }) => sum + length, 0);
      // Also of an answer that failed, or that its client has left.
      usage.add(tenant, body.model, { requests: 1, prompt_tokens, completion_tokens });
      giveBack(most - prompt_tokens - completion_tokens);
      await using;
      await Promise.all(all);
      return { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
    },
  };
}

/** Natural logarithms, of the model's own distribution. */
const logOf = (token: number, logits: Float32Array, count: number): TokenLog => {
  return { id: token, logprob: logProb(logits, token), top: topOf(logits, count) };
};

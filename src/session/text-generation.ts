// Prompts that are answered under many adapters together: what is known before a weight is read, then tokens as they come.

import { RequestError } from "../base/errors.ts";
import { heldWeights } from "../base/precision.ts";
import type { Sampling } from "../base/sample.ts";
import { counted } from "../base/units.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { describeDevice } from "../engine/probe.ts";
import { stopTokens } from "../files/generation.ts";
import { checkFormat } from "../plan/format.ts";
import { planGeneration } from "../plan/generation.ts";
import { type GeneratedToken, type Generation, generate } from "./generate.ts";
import { type GenerateRequest, type PromptOptions, type Question, readGenerateRequest } from "./generation-request.ts";
import { openGeneration } from "./open-generation.ts";

export type GenerationOptions = PromptOptions & {
  readonly sampling: Sampling;
  /** New tokens of an answer at most; of one that is known, as many as it has, where these are more. */
  readonly limit: number;
  readonly seed: number;
};

/** A question and its answer so far. */
export type Answer = {
  readonly question: Question;
  readonly ids: number[];
  end: GeneratedToken["end"];
};

export type TextGeneration = Pick<GenerateRequest, "base" | "notices"> & {
  /** The device's name. */
  readonly device: string;
  readonly adapters: readonly string[];
  /** One for each question, in their order. */
  readonly answers: readonly Answer[];
  readonly decode: Tokenizer["decode"];
  /** Reads the weights and opens the stage. */
  open(): Promise<OpenTextGeneration>;
};
export type OpenTextGeneration = AsyncDisposable & {
  /** Each answer whenever it has got a token. */
  generate(): AsyncGenerator<Answer>;
};

/** Reads the request and plans its stage. Throws RequestErrors. */
export async function prepareGeneration(options: GenerationOptions): Promise<TextGeneration> {
  const request = await readGenerateRequest(options);
  const { base, spec, exact, tokenizer, adapters, questions, notices } = request;
  const wanted = questions.map(({ adapter, ids }, i): Generation => {
    return { adapter, prompt: ids, limit: limitOf(request, i, options.limit), seed: options.seed };
  });
  const device = describeDevice(request.device, request.precision);
  const held = heldWeights(request.precision, device, exact);
  checkFormat(held.format, spec);
  const sizes = wanted.map(({ adapter, prompt, limit }) => ({ adapter, prompt: prompt.length, limit }));
  const plan = planGeneration(spec, device, adapters, sizes, held.format, held);
  const stops = new Set([...stopTokens(base), ...request.ends]);
  const answers = questions.map((question): Answer => ({ question, ids: [], end: null }));
  return {
    ...{ base, notices, answers },
    device: device.name,
    adapters: adapters.map(({ name }) => name),
    decode: tokenizer.decode,
    async open() {
      const engine = await openGeneration(plan, { folder: base }, adapters);
      return {
        async *generate() {
          for await (const { index, token, end } of generate(engine, wanted, options.sampling, stops)) {
            const answer = answers[index]!;
            answer.ids.push(token);
            answer.end = end;
            yield answer;
          }
        },
        [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose](),
      };
    },
  };
}

/** Tokens that may follow: as many as wanted, or as a known answer has, within the model's positions. */
function limitOf({ spec, questions }: GenerateRequest, i: number, wanted: number): number {
  const { ids, expected, place } = questions[i]!;
  const left = spec.maxPositions - ids.length;
  if (ids.length === 0 || left < 1)
    throw new RequestError(
      "generate.length",
      ids.length === 0
        ? `${place}: the prompt has no token`
        : `${place}: the prompt has ${counted(ids.length, "token")}, the base model ${counted(spec.maxPositions, "position")}`,
      "give it another prompt",
    );
  return Math.min(left, Math.max(wanted, expected?.length ?? 0));
}

/**
 * Whether the generated tokens are exactly the known answer, its end mark included, and ended there. Null where
 * none is known.
 */
export const isExact = ({ question: { expected }, ids, end }: Answer): boolean | null =>
  expected && end === "stop" && ids.length === expected.length && expected.every((id, i) => ids[i] === id);

/**
 * The text of an answer, without the token that ended it. An incomplete character at its end is held back while
 * more may follow.
 */
export function answerText({ ids, end }: Answer, decode: Tokenizer["decode"]): string {
  const text = decode(end === "stop" ? ids.slice(0, -1) : ids);
  return end === null ? text.replace(/\ufffd+$/, "") : text;
}

// /v1/completions: plain texts or token ids that are continued.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { randomText } from "../../base/secret.ts";
import type { TextModel } from "../../session/generation/text-model.ts";
import { badRequest } from "../errors.ts";
import { seconds } from "../files.ts";
import type { Call, Route } from "../router.ts";
import { type AnswersOptions, type Counted, type Piece, prepareAnswers, samplingEntries, type TokenLog } from "./answers.ts";
import { FINGERPRINT } from "./chat.ts";
import { eventStream } from "./events.ts";

const ids = v.pipe(v.array(v.pipe(v.number(), v.integer(), v.minValue(0))), v.minLength(1, "is empty"));
const PROMPT = "a text, texts, token ids or lists of token ids";

export const CompletionBody = v.object({
  ...samplingEntries,
  prompt: v.union([v.string(), ids, v.pipe(v.array(v.union([v.string(), ids])), v.minLength(1))], expected(PROMPT)),
  max_tokens: v.nullish(v.pipe(v.number(), v.integer(), v.minValue(1))),
  logprobs: v.nullish(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(5))),
  echo: v.nullish(v.boolean()),
  best_of: v.nullish(v.number()),
  suffix: v.nullish(v.string()),
});
type CompletionBody = v.InferOutput<typeof CompletionBody>;

export function completionRoutes(options: AnswersOptions): Route[] {
  const { texts } = options;
  const complete = async ({ tenant, json, request }: Call): Promise<Response> => {
    const body = await json(CompletionBody);
    if (body.suffix) throw badRequest("'suffix' is not served: leave it out.", "suffix");
    if (body.best_of != null && body.best_of !== (body.n ?? 1))
      throw badRequest("'best_of' is not served but as n.", "best_of");
    if (body.echo && body.logprobs != null) throw badRequest("'echo' is not served together with 'logprobs'.", "echo");
    const prompts = promptsOf(body, texts, options.engine.plan.spec.vocab);
    const asked = { tenant, body, prompts, maxTokens: body.max_tokens ?? 16, logprobs: body.logprobs ?? null };
    const answering = await prepareAnswers(asked, options);
    const head = {
      ...{ id: `cmpl-${randomText(24)}`, object: "text_completion", created: seconds(), model: body.model },
      system_fingerprint: FINGERPRINT,
    };
    const n = body.n ?? 1;
    const echoed = (choice: number) => (body.echo ? texts.decode(prompts[Math.floor(choice / n)]!) : "");
    const choiceOf = (index: number, text: string, logs: readonly TokenLog[], end: Piece["end"], at = 0) => ({
      ...{ index, text, logprobs: body.logprobs == null ? null : logsObject(logs, texts, at), finish_reason: end },
    });
    if (body.stream) return stream(head, body, answering, echoed, choiceOf);
    const found = Array.from({ length: answering.choices }, (_, i) => ({
      text: echoed(i),
      logs: [] as TokenLog[],
      end: "stop" as Piece["end"],
    }));
    const usage = await answering.run(({ choice, text, logs, end }) => {
      const of = found[choice]!;
      of.text += text;
      of.logs.push(...logs);
      if (end !== null) of.end = end;
    }, request.signal);
    const choices = found.map(({ text, logs, end }, index) => choiceOf(index, text, logs, end));
    return Response.json({ ...head, choices, usage });
  };
  return [
    { method: "POST", path: "/v1/completions", summary: "Continue texts", handler: complete, body: CompletionBody },
    { method: "POST", path: "/oai/api/v1/completions", summary: "The same", handler: complete, body: CompletionBody },
  ];
}

function promptsOf({ prompt }: CompletionBody, texts: TextModel, vocab: number): readonly (readonly number[])[] {
  const isIds = (of: unknown): of is number[] => Array.isArray(of) && typeof of[0] === "number";
  const all = typeof prompt === "string" || isIds(prompt) ? [prompt] : (prompt as readonly (string | number[])[]);
  return all.map((of) => {
    if (typeof of === "string") return texts.textIds(of);
    const unknown = of.find((id) => id >= vocab);
    if (unknown !== undefined) throw badRequest(`The prompt has the token ${unknown}; the model has ${vocab}.`, "prompt");
    return of;
  });
}

function stream(
  head: object,
  body: CompletionBody,
  answering: { readonly choices: number; readonly run: (got: (piece: Piece) => void, signal: AbortSignal) => Promise<Counted> },
  echoed: (choice: number) => string,
  choiceOf: (index: number, text: string, logs: readonly TokenLog[], end: Piece["end"], at: number) => object,
): Response {
  const withUsage = body.stream_options?.include_usage === true;
  return eventStream(async (send, signal) => {
    const chunk = (choices: readonly object[], usage: Counted | null = null) =>
      send({ ...head, choices, ...(withUsage ? { usage } : {}) });
    const lengths = Array.from({ length: answering.choices }, () => 0);
    if (body.echo) for (const index of lengths.keys()) chunk([choiceOf(index, echoed(index), [], null, 0)]);
    const usage = await answering.run(({ choice, text, logs, end }) => {
      chunk([choiceOf(choice, text, logs, end, lengths[choice]!)]);
      lengths[choice]! += text.length;
    }, signal);
    if (withUsage) chunk([], usage);
  });
}

/** `at` is where the first of these tokens begins in the text. */
function logsObject(logs: readonly TokenLog[], { decode }: TextModel, at: number) {
  const tokens = logs.map(({ id }) => decode([id]));
  let offset = at;
  return {
    tokens,
    token_logprobs: logs.map(({ logprob }) => logprob),
    // Parts of characters have one text: the likeliest of them stays.
    top_logprobs: logs.map(({ top }) => Object.fromEntries(top.map(([id, value]) => [decode([id]), value] as const).reverse())),
    text_offset: tokens.map((token) => {
      offset += token.length;
      return offset - token.length;
    }),
  };
}

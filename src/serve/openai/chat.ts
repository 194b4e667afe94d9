// /v1/chat/completions: conversations with the base or a trained adapter, in the model's own chat template.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { randomText } from "../../base/secret.ts";
import { VERSION } from "../../base/version.ts";
import type { TextModel } from "../../session/generation/text-model.ts";
import { badRequest } from "../errors.ts";
import { seconds } from "../files.ts";
import type { Call, Route } from "../router.ts";
import { type AnswersOptions, type Counted, type Piece, prepareAnswers, samplingEntries, type TokenLog } from "./answers.ts";
import { eventStream } from "./events.ts";

const tokens = v.nullish(v.pipe(v.number(), v.integer(), v.minValue(1)));

export const ChatBody = v.object({
  ...samplingEntries,
  messages: v.pipe(v.array(v.record(v.string(), v.unknown()), expected("a list of messages")), v.minLength(1, "is empty")),
  max_tokens: tokens,
  max_completion_tokens: tokens,
  logprobs: v.nullish(v.boolean()),
  top_logprobs: v.nullish(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(20))),
  tools: v.nullish(v.array(v.record(v.string(), v.unknown()))),
  tool_choice: v.nullish(v.unknown()),
  response_format: v.nullish(v.object({ type: v.string() })),
  add_generation_prompt: v.nullish(v.boolean()),
  chat_template_kwargs: v.nullish(v.record(v.string(), v.unknown())),
});
type ChatBody = v.InferOutput<typeof ChatBody>;

export const FINGERPRINT = `mlora-${VERSION}`;

export function chatRoutes(options: AnswersOptions): Route[] {
  const chat = async ({ tenant, exact: read, request }: Call): Promise<Response> => {
    const { body, exact } = await read(ChatBody);
    const { logprobs, top_logprobs } = body;
    if (top_logprobs != null && !logprobs) throw badRequest("'top_logprobs' needs 'logprobs' to be true.", "top_logprobs");
    const asked = {
      ...{ tenant, body, prompts: [promptOf(body, exact, options.texts)] },
      maxTokens: body.max_completion_tokens ?? body.max_tokens ?? null,
      logprobs: logprobs ? (top_logprobs ?? 0) : null,
    };
    const answering = await prepareAnswers(asked, options);
    const head = {
      ...{ id: `chatcmpl-${randomText(24)}`, created: seconds(), model: body.model, system_fingerprint: FINGERPRINT },
    };
    const logs = (of: readonly TokenLog[]) =>
      logprobs ? { content: of.map((log) => logObject(log, options.texts)), refusal: null } : null;
    if (body.stream) return stream(head, body, answering.run, logs);
    const texts = Array.from({ length: answering.choices }, () => ({
      text: "",
      logs: [] as TokenLog[],
      end: "stop" as Piece["end"],
    }));
    const usage = await answering.run(({ choice, text, logs: more, end }) => {
      const of = texts[choice]!;
      of.text += text;
      of.logs.push(...more);
      if (end !== null) of.end = end;
    }, request.signal);
    const choices = texts.map(({ text, logs: of, end }, index) => ({
      ...{ index, message: { role: "assistant", content: text, refusal: null }, logprobs: logs(of), finish_reason: end },
    }));
    return Response.json({ ...head, object: "chat.completion", choices, usage });
  };
  return [
    { method: "POST", path: "/v1/chat/completions", summary: "Answer a conversation", handler: chat, body: ChatBody },
    { method: "POST", path: "/oai/api/v1/chat/completions", summary: "The same", handler: chat, body: ChatBody },
  ];
}

/** `exact`: all of the body as it is written, for the chat template. */
function promptOf(body: ChatBody, exact: Readonly<Record<string, unknown>>, texts: TextModel): readonly number[] {
  const { response_format: format, tools, tool_choice: choice } = body;
  if (format && format.type !== "text")
    throw badRequest(`response_format '${format.type}' is not served: answers are plain text.`, "response_format");
  if (choice != null && choice !== "auto" && choice !== "none")
    throw badRequest("'tool_choice' is not served but as auto or none: a model is not made to call a tool.", "tool_choice");
  if (!texts.hasChatTemplate) throw badRequest("The model has no chat template: use /v1/completions.", "messages");
  const given = tools && tools.length > 0 && choice !== "none" ? { tools: exact["tools"] } : {};
  const kwargs = body.chat_template_kwargs ? { chat_template_kwargs: exact["chat_template_kwargs"] } : {};
  return texts.chatIds({ messages: exact["messages"], ...given, ...kwargs }, body.add_generation_prompt ?? true);
}

function stream(
  head: object,
  body: ChatBody,
  run: (got: (piece: Piece) => void, signal: AbortSignal) => Promise<Counted>,
  logs: (of: readonly TokenLog[]) => object | null,
): Response {
  const withUsage = body.stream_options?.include_usage === true;
  return eventStream(async (send, signal) => {
    const chunk = (choices: readonly object[], usage: Counted | null = null) =>
      send({ ...head, object: "chat.completion.chunk", choices, ...(withUsage ? { usage } : {}) });
    for (let index = 0; index < (body.n ?? 1); index++)
      chunk([{ index, delta: { role: "assistant", content: "", refusal: null }, logprobs: null, finish_reason: null }]);
    const usage = await run(({ choice: index, text, logs: of, end }) => {
      if (text !== "" || of.length > 0)
        chunk([{ index, delta: { content: text }, logprobs: of.length > 0 ? logs(of) : null, finish_reason: null }]);
      if (end !== null) chunk([{ index, delta: {}, logprobs: null, finish_reason: end }]);
    }, signal);
    if (withUsage) chunk([], usage);
  });
}

/** `bytes` is null for a token that holds a part of a character. */
function logObject({ id, logprob, top }: TokenLog, { decode }: TextModel) {
  const one = (of: number, value: number) => {
    const token = decode([of]);
    return { token, logprob: value, bytes: token.includes("\ufffd") ? null : [...Buffer.from(token)] };
  };
  return { ...one(id, logprob), top_logprobs: top.map(([of, value]) => one(of, value)) };
}

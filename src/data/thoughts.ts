// Thoughts of the assistant, under the names and in the places that a chat template knows.

import type { Span } from "./answers.ts";
import { hasText, isAsked, tellsArguments } from "./asked.ts";
import { parseJson } from "./json.ts";
import { type Message, splitThoughts } from "./turns.ts";

/** Messages as this template reads them. */
export const forTemplate = (messages: readonly Message[], template: string | null): readonly Message[] =>
  template === null ? messages : messages.map((message) => withArguments(withField(message, template), template));

/** Names of thoughts that templates read. */
const FIELDS = ["reasoning_content", "thinking"];

/**
 * Thoughts within the content become the fields that the template reads, where it does not itself look for them in the content:
 * else they would be written as a part of the answer.
 */
function withField(message: Message, template: string): Message {
  if (message.role !== "assistant" || message["reasoning_content"] !== undefined) return message;
  if (!FIELDS.some((name) => isAsked(name, template)) || hasText("</think>", template)) return message;
  const { thoughts, answer } = splitThoughts(message.content);
  if (thoughts === null) return message;
  return { thinking: thoughts.trim(), ...message, content: answer, reasoning_content: thoughts.trim() };
}

/**
 * A call's arguments as JSON text become the object, where the template does not itself tell the two apart: it would quote the
 * text.
 */
function withArguments(message: Message, template: string): Message {
  const calls = message["tool_calls"];
  if (!Array.isArray(calls) || tellsArguments(template)) return message;
  return {
    ...message,
    tool_calls: calls.map((call: Readonly<Record<string, unknown>>) => {
      const inner = call["function"] as Readonly<Record<string, unknown>> | undefined;
      return inner ? { ...call, function: parsed(inner) } : parsed(call);
    }),
  };
}

function parsed(call: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> {
  const { arguments: given } = call;
  if (typeof given !== "string") return call;
  try {
    const value = parseJson(given);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...call, arguments: value } : call;
  } catch {
    return call; // no JSON: the template writes it as it is
  }
}

/** A turn without its thoughts, wherever they stand. */
export function withoutThoughts(message: Message): Message {
  if (message.role !== "assistant") return message;
  const { reasoning_content: _, reasoning: __, thinking: ___, ...rest } = message;
  return { ...rest, role: message.role, content: splitThoughts(message.content).answer };
}

const EMPTY = /^\s*<think>\s*<\/think>\n{0,2}/;
const OPENED = /<think>\s*$/;
const CLOSED = /^\s*<\/think>\n{0,2}/;

/**
 * Characters of an empty think block that a template writes at the beginning of an answer, `from` to `to` of the text, and the
 * data does not have; 0 for none. Where the generation prompt opens the block, the answer begins with what closes it.
 */
export function emptyThoughts(text: string, { from, to }: Span, { content }: Message): number {
  if (EMPTY.test(content)) return 0;
  const answer = text.slice(from, to);
  const block = EMPTY.exec(answer) ?? (OPENED.test(text.slice(0, from)) ? CLOSED.exec(answer) : null);
  return block?.[0].length ?? 0;
}

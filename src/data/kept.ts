// What the turns of a conversation say and the text does not that is made of them: templates leave out thoughts of earlier
// turns, calls of tools that they do not know, system messages. Whatever is lost is reported.

import type { Span } from "./answers.ts";
import type { Chat } from "./format.ts";
import { stringifyJson } from "./json.ts";
import { type Message, splitThoughts } from "./turns.ts";

export type LossKind = "thoughts" | "answers" | "tool calls" | "context";
/** `words` of the turn `turn`, from 0, are not in the text. */
export type Loss = { readonly kind: LossKind; readonly turn: number; readonly words: string };

/**
 * What is lost of a conversation's turns, and the learned turns of which nothing is left. `spans`: where the learned turns lie
 * in the text; what the others say may stand anywhere, and their thoughts are left out as they are when the model writes
 * what follows.
 */
export function lossesOf({ messages }: Chat, text: string, spans: ReadonlyMap<number, Span>) {
  const losses: Loss[] = [];
  const silenced: number[] = [];
  for (const [turn, message] of messages.entries()) {
    const span = spans.get(turn);
    const region = span ? text.slice(span.from, span.to) : text;
    const parts = partsOf(message, span !== undefined).filter(({ said }) => said.trim() !== "");
    let gone = 0;
    for (const { kind, said } of parts) {
      const lost = missing(said, region, kind === "tool calls");
      if (lost === null) continue;
      losses.push({ kind: span ? kind : "context", turn, words: lost.words });
      if (lost.whole) gone++;
    }
    if (span && gone > 0 && gone === parts.length) silenced.push(turn);
  }
  return { losses, silenced };
}

type Part = { readonly kind: LossKind; readonly said: string };

function partsOf(message: Message, isLearned: boolean): Part[] {
  if (message.role !== "assistant") return [{ kind: "context", said: message.content }];
  const { thoughts, answer } = splitThoughts(message.content);
  const own = message["reasoning_content"];
  const calls = wordsOf(message["tool_calls"]).map((said) => ({ kind: "tool calls", said }) as const);
  if (!isLearned) return [{ kind: "context", said: answer }, ...calls];
  return [
    ...(thoughts === null ? [] : [{ kind: "thoughts", said: thoughts } as const]),
    ...(typeof own === "string" ? [{ kind: "thoughts", said: own } as const] : []),
    { kind: "answers", said: answer },
    ...calls,
  ];
}

/** The names of called tools, and the texts among their arguments. */
function wordsOf(calls: unknown): string[] {
  if (!Array.isArray(calls)) return [];
  return calls.flatMap((call: { readonly function?: unknown }) => {
    const { name, arguments: given } = (call.function ?? call) as { readonly name: string; readonly arguments?: unknown };
    return [name, ...leaves(given)];
  });
}

function leaves(value: unknown): string[] {
  if (typeof value === "string") return [value];
  if (typeof value !== "object" || value === null) return [];
  return Object.values(value).flatMap(leaves);
}

/** The words of `said` that are not in `text`; null where all are. A template may trim, and write texts of calls as JSON. */
function missing(said: string, text: string, isCall: boolean): { readonly words: string; readonly whole: boolean } | null {
  const trimmed = said.trim();
  if (trimmed === "" || text.includes(trimmed)) return null;
  if (isCall && forms(trimmed).some((form) => text.includes(form))) return null;
  const words = trimmed.split(/\s+/);
  const lost = words.filter((word) => !text.includes(word) && !(isCall && forms(word).some((form) => text.includes(form))));
  return lost.length === 0 ? null : { words: lost.join(" "), whole: lost.length === words.length };
}

/** How a text stands within JSON: escaped, its other characters as they are or escaped as well. */
function forms(text: string): string[] {
  const quoted = stringifyJson(text)!.slice(1, -1);
  const ascii = quoted.replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const html = ascii.replace(/[<>&']/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return [quoted, ascii, html];
}

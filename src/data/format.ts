// What a row of data says, whatever its form: a conversation, a prompt with its completion, or plain text. Not what ids it
// becomes: that is tokenise.ts's.

import { RequestError } from "../base/errors.ts";
import type { AdapterRecipe, Format } from "../recipe/recipe.ts";
import { stringifyJson } from "./json.ts";
import { clip, type Fields, RowFault } from "./jsonl.ts";
import { compileTemplates } from "./template.ts";

/** A turn of a conversation. What else the row says of it (tool calls, a name) goes to the chat template as it is. */
export type Message = { readonly role: string; readonly content: string; readonly [more: string]: unknown };

/** A conversation as a chat template sees it: `variables` stand beside the turns (`tools`, and whatever else the template asks for). */
export type Chat = { readonly messages: readonly Message[]; readonly variables: Readonly<Record<string, unknown>> };

export type Example =
  /** Assistant turns from `answersFrom` on are learned, except those at the indices in `unlearned`. */
  | (Chat & { readonly kind: "chat"; readonly answersFrom: number; readonly unlearned: ReadonlySet<number> })
  | { readonly kind: "pair"; readonly prompt: string; readonly completion: string }
  | { readonly kind: "text"; readonly text: string };

/**
 * A row of two sequences: of preferences a prompt with two answers, the better one first; of KTO one answer, and whether it is desirable; of
 * CIT an instruction with its answer, and a paraphrase with the same answer.
 */
export type PreferenceExample = { readonly own: Example; readonly other: Example | null; readonly label: boolean };

export type FormatOptions = Pick<AdapterRecipe, "format" | "template" | "system"> & {
  /** Prompts become a user's turn: the recipe wants it and the model has a chat template. */
  readonly asChat: boolean;
};

/** Reads rows of one form; "auto" takes the form of the first row for all. Throws a RowFault for a row that does not fit. */
export function exampleReader(options: FormatOptions): (fields: Fields) => Example {
  let format: Format = options.format;
  const templates = options.template ? compileTemplates(options.template) : null;
  return (fields) => {
    if (format === "auto") format = formatOf(fields);
    switch (format) {
      case "messages": {
        const field = "messages" in fields || !("conversations" in fields) ? "messages" : "conversations";
        return chatOf(turnsOf(fields, field), options.system, 0);
      }
      case "prompt-completion":
        return pairOf(fields, options);
      case "alpaca":
        return alpacaOf(fields, options);
      case "text":
        return { kind: "text", text: textField(fields, "text") };
      case "template": {
        if (!templates) throw new RequestError("data.template", 'format "template" needs template = { prompt, completion }');
        return pair(templates.prompt(fields), nonEmpty(templates.completion(fields), "completion"), options);
      }
      default:
        return format satisfies never;
    }
  };
}

/**
 * Reads rows of preferences as TRL's users know them: prompt, chosen, rejected. Of two whole conversations the prompt is the beginning that
 * both have in common; a text that stands beside them says the same again (UltraFeedback).
 */
export function pairedReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  const isWhole = ({ prompt, chosen, rejected }: Fields) =>
    prompt === undefined || (typeof prompt === "string" && Array.isArray(chosen) && Array.isArray(rejected));
  return (fields) => {
    const { prompt, chosen, rejected } = isWhole(fields) ? withPrompt(fields) : fields;
    const answer = (name: string, completion: unknown) => naming(name, () => pairOf({ prompt, completion }, options));
    return { own: answer("chosen", chosen), other: answer("rejected", rejected), label: true };
  };
}

/** Reads rows of an answer to two instructions that mean the same: prompt, paraphrase, completion. */
export function paraphrasedReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  return (fields) => {
    const { paraphrase: prompt, completion } = fields;
    const own = pairOf(fields, options);
    return { own, other: naming("paraphrase", () => pairOf({ prompt, completion }, options), "prompt"), label: true };
  };
}

/** Reads rows of single answers: prompt, completion, label. */
export function labelledReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  return (fields) => {
    const { label } = fields;
    if (typeof label !== "boolean")
      throw new RowFault(`has ${clip(stringifyJson(label) ?? "nothing")} in 'label', wants true or false`);
    return { own: pairOf(fields, options), other: null, label };
  };
}

/** Faults of a completion, or of another field, that stands under another name. */
function naming<T>(name: string, read: () => T, known = "completion"): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof RowFault) throw new RowFault(error.message.replace(known, name));
    throw error;
  }
}

/** Two conversations with the same beginning: that is the prompt, and the rest are the answers. */
function withPrompt(fields: Fields): Fields {
  if (!Array.isArray(fields["chosen"]) || !Array.isArray(fields["rejected"]))
    throw new RowFault("lacks the field 'prompt'; only two conversations, in 'chosen' and 'rejected', can do without");
  const [chosen, rejected] = [turnsOf(fields, "chosen"), turnsOf(fields, "rejected")];
  const same = (i: number) => stringifyJson(chosen[i]) === stringifyJson(rejected[i]);
  let common = 0;
  while (common < Math.min(chosen.length, rejected.length) && same(common)) common++;
  if (common === 0) throw new RowFault("has in 'chosen' and 'rejected' conversations that begin differently");
  return { prompt: chosen.slice(0, common), chosen: chosen.slice(common), rejected: rejected.slice(common) };
}

/** The form of a row, by its fields. */
function formatOf(fields: Fields): Exclude<Format, "auto" | "template"> {
  if ("messages" in fields || "conversations" in fields) return "messages";
  if ("prompt" in fields && "completion" in fields) return "prompt-completion";
  if ("instruction" in fields && "output" in fields) return "alpaca";
  if ("text" in fields) return "text";
  const found = clip(Object.keys(fields).join(", ")) || "(none)";
  throw new RowFault(
    `has the fields ${found}; wants messages, prompt and completion, instruction and output, or text (or a template in the recipe)`,
  );
}

/** A field's text; one that is optional may be missing, null or empty. */
function textField(fields: Fields, name: string, optional = false): string {
  const value = fields[name];
  if (optional && value == null) return "";
  if (value === undefined) throw new RowFault(`lacks the field '${name}'`);
  if (typeof value !== "string")
    throw new RowFault(`has ${clip(stringifyJson(value) ?? "nothing")} in '${name}', wants a text`);
  return optional ? value : nonEmpty(value, name);
}

function nonEmpty(text: string, name: string): string {
  if (text.trim() === "") throw new RowFault(`has an empty '${name}'`);
  return text;
}

const ROLES = ["system", "user", "assistant", "tool"];
/** ShareGPT's names of the roles, in turns that say "from" and "value". */
const SHAREGPT_ROLES = new Map([
  ["human", "user"],
  ["gpt", "assistant"],
]);

function turnsOf(fields: Fields, field: string): Message[] {
  const turns = fields[field];
  if (turns === undefined) throw new RowFault(`lacks the field '${field}'`);
  if (!Array.isArray(turns) || turns.length === 0) throw new RowFault(`has no list of turns in '${field}'`);
  return turns.map((turn: unknown, i) => turnOf(turn, `${field}[${i}]`));
}

function turnOf(turn: unknown, place: string): Message {
  if (typeof turn !== "object" || turn === null || Array.isArray(turn)) throw new RowFault(`has no object in ${place}`);
  const [roleKey, contentKey] = "from" in turn && !("role" in turn) ? ["from", "value"] : ["role", "content"];
  const { [roleKey]: said, [contentKey]: content, ...more } = turn as Record<string, unknown>;
  const role = roleKey === "from" ? (SHAREGPT_ROLES.get(String(said)) ?? said) : said;
  if (typeof role !== "string" || !ROLES.includes(role))
    throw new RowFault(`has ${clip(stringifyJson(said) ?? "nothing")} as ${place}.${roleKey}; known are ${ROLES.join(", ")}`);
  if (content == null && Array.isArray(more["tool_calls"])) return { ...more, role, content: "" };
  if (typeof content !== "string") throw new RowFault(`has no text in ${place}.${contentKey}`);
  return { ...more, role, content };
}

const saysNothing = ({ content, ...more }: Message): boolean => content.trim() === "" && !Array.isArray(more["tool_calls"]);

function chatOf(messages: readonly Message[], system: string | null, answersFrom: number): Example {
  const answers = messages.slice(answersFrom).filter(({ role }) => role === "assistant");
  if (answers.length === 0) throw new RowFault("has no turn of the assistant");
  if (answers.some(saysNothing)) throw new RowFault("has an empty turn of the assistant");
  const chat = { kind: "chat", variables: {}, unlearned: new Set<number>() } as const;
  if (system === null || messages.some(({ role }) => role === "system")) return { ...chat, messages, answersFrom };
  return { ...chat, messages: [{ role: "system", content: system }, ...messages], answersFrom: answersFrom + 1 };
}

/** A prompt and its completion: a user's and an assistant's turn, or plain text behind plain text. */
function pair(prompt: string, completion: string, { asChat, system }: FormatOptions): Example {
  if (!asChat) return { kind: "pair", prompt: system === null ? prompt : `${system}\n\n${prompt}`, completion };
  const messages = [
    { role: "user", content: prompt },
    { role: "assistant", content: completion },
  ];
  return chatOf(messages, system, 1);
}

function pairOf(fields: Fields, options: FormatOptions): Example {
  if (!Array.isArray(fields["prompt"]) || !Array.isArray(fields["completion"]))
    return pair(textField(fields, "prompt"), textField(fields, "completion"), options);
  const before = turnsOf(fields, "prompt");
  return chatOf([...before, ...turnsOf(fields, "completion")], options.system, before.length);
}

/** As a chat the instruction is the user's turn; without a chat template it is put into the text of Stanford's Alpaca. */
function alpacaOf(fields: Fields, options: FormatOptions): Example {
  const instruction = textField(fields, "instruction");
  const input = textField(fields, "input", true);
  const output = textField(fields, "output");
  if (options.asChat) return pair(input ? `${instruction}\n\n${input}` : instruction, output, options);
  const about = input
    ? "Below is an instruction that describes a task, paired with an input that provides further context. "
    : "Below is an instruction that describes a task. ";
  const task = `${about}Write a response that appropriately completes the request.\n\n### Instruction:\n${instruction}\n\n`;
  return pair(`${task}${input ? `### Input:\n${input}\n\n` : ""}### Response:\n`, output, options);
}

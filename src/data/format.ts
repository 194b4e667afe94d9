// What a row of data says, whatever its form: a conversation, a prompt with its completion, or plain text.

import { Template } from "@huggingface/jinja";
import { RequestError, textOf } from "../base/errors.ts";
import type { AdapterRecipe, Format } from "../recipe/recipe.ts";
import { RowFault } from "./jsonl.ts";

export type Message = { readonly role: string; readonly content: string };

export type Example =
  /** Turns of the assistant from `answersFrom` on are what is learned. */
  | { readonly kind: "chat"; readonly messages: readonly Message[]; readonly answersFrom: number }
  | { readonly kind: "pair"; readonly prompt: string; readonly completion: string }
  | { readonly kind: "text"; readonly text: string };

type Fields = Readonly<Record<string, unknown>>;
export type FormatOptions = Pick<AdapterRecipe, "format" | "template" | "system"> & {
  /** Prompts become a user's turn: the recipe wants it and the model has a chat template. */
  readonly asChat: boolean;
};

/** The form of a row by its fields, or null where none fits. */
function formatOf(fields: Fields): Exclude<Format, "auto" | "template"> | null {
  if ("messages" in fields || "conversations" in fields) return "messages";
  if ("prompt" in fields && "completion" in fields) return "prompt-completion";
  if ("instruction" in fields && "output" in fields) return "alpaca";
  return "text" in fields ? "text" : null;
}

/** Reads rows of one form; "auto" takes the form of the first row for all. Throws a RowFault for a row that does not fit. */
export function exampleReader(options: FormatOptions): (fields: Fields) => Example {
  let format: Format = options.format;
  const templates = options.template ? compile(options.template) : null;
  return (fields) => {
    if (format === "auto") {
      const found = formatOf(fields);
      if (!found)
        throw new RowFault(
          `has the fields ${Object.keys(fields).join(", ") || "(none)"}; wants messages, prompt and completion, instruction and output, or text`,
        );
      format = found;
    }
    switch (format) {
      case "messages":
        return chatOf(messagesOf(fields), options.system, 0);
      case "prompt-completion":
        return pairOf(fields, options);
      case "alpaca":
        return alpacaOf(fields, options);
      case "text":
        return { kind: "text", text: textField(fields, "text") };
      case "template":
        return pair(render(templates!.prompt, fields), nonEmpty(render(templates!.completion, fields), "completion"), options);
      default:
        return format satisfies never;
    }
  };
}

function compile({ prompt, completion }: { readonly prompt: string; readonly completion: string }) {
  const one = (name: string, text: string) => {
    try {
      return new Template(text);
    } catch (error) {
      throw new RequestError("data.template", `template.${name} is no Jinja template: ${textOf(error)}`);
    }
  };
  return { prompt: one("prompt", prompt), completion: one("completion", completion) };
}

function render(template: Template, fields: Fields): string {
  try {
    return template.render({ ...fields });
  } catch (error) {
    throw new RowFault(`does not fit the template: ${textOf(error)}`);
  }
}

function textField(fields: Fields, name: string, optional = false): string {
  const value = fields[name];
  if (optional && value == null) return "";
  if (value === undefined) throw new RowFault(`lacks the field '${name}'`);
  if (typeof value !== "string") throw new RowFault(`has ${JSON.stringify(value)?.slice(0, 40)} in '${name}', wants a text`);
  return optional ? value : nonEmpty(value, name);
}

function nonEmpty(text: string, name: string): string {
  if (text.trim() === "") throw new RowFault(`has an empty '${name}'`);
  return text;
}

const SHAREGPT_ROLES: Readonly<Record<string, string>> = { human: "user", gpt: "assistant", system: "system", tool: "tool" };

function messagesOf(fields: Fields): Message[] {
  if (fields["messages"] === undefined && fields["conversations"] !== undefined)
    return messageList(fields["conversations"], "conversations", "from", "value").map(({ role, content }) => ({
      role: SHAREGPT_ROLES[role] ?? role,
      content,
    }));
  return messageList(fields["messages"], "messages", "role", "content");
}

const ROLES = ["system", "user", "assistant", "tool", ...Object.keys(SHAREGPT_ROLES)];

function messageList(value: unknown, field: string, roleKey: string, contentKey: string): Message[] {
  if (value === undefined) throw new RowFault(`lacks the field '${field}'`);
  if (!Array.isArray(value) || value.length === 0) throw new RowFault(`has no list of turns in '${field}'`);
  return value.map((turn: unknown, i) => {
    const { [roleKey]: role, [contentKey]: content } = (turn ?? {}) as Record<string, unknown>;
    if (typeof role !== "string" || !ROLES.includes(role))
      throw new RowFault(
        `has the ${roleKey} ${JSON.stringify(role)} in ${field}[${i}]; known are system, user, assistant, tool`,
      );
    if (typeof content !== "string") throw new RowFault(`has no text in ${field}[${i}].${contentKey}`);
    return { role, content };
  });
}

function chatOf(messages: readonly Message[], system: string | null, answersFrom: number): Example {
  const answers = messages.slice(answersFrom).filter(({ role }) => role === "assistant");
  if (answers.length === 0) throw new RowFault("has no turn of the assistant");
  if (answers.some(({ content }) => content.trim() === "")) throw new RowFault("has an empty turn of the assistant");
  if (system === null || messages[0]!.role === "system") return { kind: "chat", messages, answersFrom };
  return { kind: "chat", messages: [{ role: "system", content: system }, ...messages], answersFrom: answersFrom + 1 };
}

/** A prompt and its completion: a user's and an assistant's turn, or plain text behind plain text. */
function pair(prompt: string, completion: string, { asChat, system }: FormatOptions): Example {
  if (!asChat) return { kind: "pair", prompt: system === null ? prompt : `${system}\n\n${prompt}`, completion };
  return chatOf(
    [
      { role: "user", content: prompt },
      { role: "assistant", content: completion },
    ],
    system,
    1,
  );
}

function pairOf(fields: Fields, options: FormatOptions): Example {
  const { prompt, completion } = fields;
  if (Array.isArray(prompt) && Array.isArray(completion)) {
    const before = messageList(prompt, "prompt", "role", "content");
    return chatOf([...before, ...messageList(completion, "completion", "role", "content")], options.system, before.length);
  }
  return pair(textField(fields, "prompt"), textField(fields, "completion"), options);
}

/** The texts of Stanford Alpaca, where there is no chat template to put the instruction into. */
function alpacaOf(fields: Fields, options: FormatOptions): Example {
  const [instruction, input, output] = [
    textField(fields, "instruction"),
    textField(fields, "input", true),
    textField(fields, "output"),
  ];
  if (options.asChat) return pair(input ? `${instruction}\n\n${input}` : instruction, output, options);
  const about = input
    ? "Below is an instruction that describes a task, paired with an input that provides further context. "
    : "Below is an instruction that describes a task. ";
  const task = `${about}Write a response that appropriately completes the request.\n\n### Instruction:\n${instruction}\n\n`;
  return pair(`${task}${input ? `### Input:\n${input}\n\n` : ""}### Response:\n`, output, options);
}

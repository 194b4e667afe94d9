// What a row of data says, whatever its form: a conversation, a prompt with its completion, or plain text. Not what ids it
// becomes: that is tokenise.ts's.

import { RequestError } from "../base/errors.ts";
import type { RowKind } from "../objectives/definition.ts";
import type { AdapterRecipe, Format } from "../recipe/recipe.ts";
import { isAsked } from "./asked.ts";
import { keysOf, stringifyJson } from "./json.ts";
import { clip, type Fields, RowFault } from "./jsonl.ts";
import { compileTemplates } from "./template.ts";
import { forTemplate, withoutThoughts } from "./thoughts.ts";
import { isSilent, type Message, plainTurn, saysNothing, type Turn, turnsOf } from "./turns.ts";
import { variablesOf } from "./variables.ts";

/** What a chat template is given in addition to the turns, by name: `tools`, and whatever else it asks for. */
export type ChatVariables = Readonly<Record<string, unknown>>;

/** A conversation as a chat template sees it. */
export type Chat = { readonly messages: readonly Message[]; readonly variables: ChatVariables };

export type Example =
  /** Assistant turns from `answersFrom` on are learned, except those at the indices in `unlearned`. */
  | (Chat & { readonly kind: "chat"; readonly answersFrom: number; readonly unlearned: ReadonlySet<number> })
  | { readonly kind: "pair"; readonly prompt: string; readonly completion: string }
  | { readonly kind: "text"; readonly text: string };

/**
 * A row of two sequences: of preferences a prompt with two answers, the better one first; of KTO one answer, and whether it is
 * desirable; of CIT an instruction with its answer, and a paraphrase with the same answer.
 */
export type PreferenceExample = { readonly own: Example; readonly other: Example | null; readonly label: boolean };

export type { Message } from "./turns.ts";

export type FormatOptions = Pick<AdapterRecipe, "format" | "columns" | "template" | "system" | "thoughts" | "chatVariables"> & {
  /** Prompts become a user's turn: the recipe asks for it and the model has a chat template. */
  readonly asChat: boolean;
  /** The text of that template, which tells under which names it reads what; null for none. */
  readonly chatTemplate: string | null;
  /** The text of the model's template for chats with tools, where that is one of its own. */
  readonly toolTemplate: string | null;
};

/** The text of the chat template that an example with these variables goes through. */
export const templateFor = (
  { chatTemplate, toolTemplate }: Pick<FormatOptions, "chatTemplate" | "toolTemplate">,
  variables: ChatVariables,
): string | null => (variables["tools"] == null ? chatTemplate : (toolTemplate ?? chatTemplate));

/** The form of a file's rows: where the recipe says "auto", that until the first row has settled it. */
export type SettledForm = { format: Format };

/** Reads rows of one form; "auto" takes the form of the first row for all. Throws a RowFault for a row that does not fit. */
export function exampleReader(
  options: FormatOptions,
  settled: SettledForm = { format: options.format },
): (fields: Fields) => Example {
  const templates = options.template ? compileTemplates(options.template) : null;
  return (fields) => {
    if (settled.format === "auto") settled.format = formatOf(fields);
    const { format } = settled;
    switch (format) {
      case "messages": {
        const field = "messages" in fields || !("conversations" in fields) ? "messages" : "conversations";
        return chatOf(turnsOf(fields, field), 0, fields, options);
      }
      case "prompt-completion":
        return pairOf(fields, options);
      case "alpaca":
        return alpacaOf(fields, options);
      case "text":
        return { kind: "text", text: textField(fields, "text") };
      case "template": {
        if (!templates) throw new RequestError("data.template", 'format "template" needs template = { prompt, completion }');
        const prompt = templates.prompt(fields);
        return pair(prompt, nonEmpty(templates.completion(fields), "completion"), {}, options);
      }
      default:
        return format satisfies never;
    }
  };
}

/**
 * Reads rows of preferences as TRL's users know them: prompt, chosen, rejected. Of two whole conversations the prompt is the
 * beginning that both have in common; what stands next to them says the same again (UltraFeedback), or is what they follow.
 */
export function pairedReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  return (row) => {
    const fields = preferenceFields(row);
    const { prompt, chosen, rejected } = withPrompt(fields);
    const answer = (name: string, completion: unknown) =>
      naming(name, () => pairOf({ ...fields, prompt, completion }, options));
    const [own, other] = [answer("chosen", chosen), answer("rejected", rejected)];
    if (promptOf(own) !== promptOf(other)) throw new RowFault("has in 'chosen' and 'rejected' answers to different prompts");
    return { own, other, label: true };
  };
}

/** What an answer follows, for comparison. */
const promptOf = (example: Example): string =>
  example.kind === "chat"
    ? example.messages
        .slice(0, example.answersFrom)
        .map((message) => saidBy({ message, learned: true }))
        .join("\n")
    : example.kind === "pair"
      ? example.prompt
      : "";

/** A row of OpenAI's preferences under the names that others have: its prompt, and what goes with it, stands in `input`. */
function preferenceFields(fields: Fields): Fields {
  if (!("preferred_output" in fields) && !("non_preferred_output" in fields)) return fields;
  const { input, preferred_output: chosen, non_preferred_output: rejected, ...rest } = fields;
  if (typeof input !== "object" || input === null || Array.isArray(input))
    throw new RowFault(`has ${clip(stringifyJson(input) ?? "nothing")} in 'input', expected an object with messages`);
  const { messages, ...more } = input as Fields;
  return { ...more, ...rest, prompt: messages, chosen, rejected };
}

/** Reads rows of an answer to two instructions that mean the same: prompt, paraphrase, completion. */
export function paraphrasedReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  return (fields) => {
    const { paraphrase: prompt, completion } = fields;
    const own = pairOf(fields, options);
    return {
      own,
      other: naming("paraphrase", () => pairOf({ ...fields, prompt, completion }, options), "prompt"),
      label: true,
    };
  };
}

/** A CSV file has texts alone; Python writes its own. */
const LABELS: ReadonlyMap<unknown, boolean> = new Map([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
]);

/** Reads rows of single answers: prompt, completion, label. */
export function labelledReader(options: FormatOptions): (fields: Fields) => PreferenceExample {
  return (fields) => {
    const label = LABELS.get(fields["label"]) ?? fields["label"];
    if (typeof label !== "boolean")
      throw new RowFault(`has ${clip(stringifyJson(label) ?? "nothing")} in 'label', expected true or false`);
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

/** A row of preferences with its prompt told apart from its answers. */
function withPrompt(fields: Fields): Record<"prompt" | "chosen" | "rejected", unknown> {
  const { prompt, chosen, rejected } = fields;
  const conversations = Array.isArray(chosen) && Array.isArray(rejected);
  if (prompt !== undefined && !(typeof prompt === "string" && conversations)) return { prompt, chosen, rejected };
  if (!conversations)
    throw new RowFault("lacks the field 'prompt'; only two conversations, in 'chosen' and 'rejected', can do without");
  const [better, worse] = [turnsOf(fields, "chosen"), turnsOf(fields, "rejected")];
  // A text is the question that answers without one follow; else it says again what stands in both conversations.
  const isAsked = prompt !== undefined && [better, worse].every(([turn]) => turn!.message.role === "assistant");
  const question = isAsked ? [{ role: "user", content: prompt }] : [];
  let common = 0;
  while (common < Math.min(better.length, worse.length) && isSame(better[common]!, worse[common]!)) common++;
  if (common === chosen.length && common === rejected.length)
    throw new RowFault("has the same conversation in 'chosen' and in 'rejected': it prefers nothing");
  if (common === chosen.length || common === rejected.length) {
    const [less, more] = common === chosen.length ? ["chosen", "rejected"] : ["rejected", "chosen"];
    throw new RowFault(`has in '${less}' the beginning of the conversation in '${more}', and no answer of its own`);
  }
  if (common === 0 && !isAsked) throw new RowFault("has in 'chosen' and 'rejected' conversations that begin differently");
  const asked = [...question, ...chosen.slice(0, common)];
  return { prompt: asked, chosen: chosen.slice(common), rejected: rejected.slice(common) };
}

/** Whether two turns say the same, in whatever form and order of keys. */
const isSame = (one: Turn, other: Turn): boolean => saidBy(one) === saidBy(other);
const saidBy = ({ message }: Turn): string => stringifyJson(message, true)!;

/**
 * Turns before an answer and the answer's own. An answer that is a whole conversation says its prompt's turns again, maybe
 * after a system message: they are there once.
 */
function onceEach(before: readonly Turn[], after: readonly Turn[]): readonly [readonly Turn[], readonly Turn[]] {
  const from = Math.max(
    0,
    after.findIndex((turn) => !isSystem(turn)),
  );
  for (const lead of new Set([0, from])) {
    const end = lead + before.length;
    if (after.length > end && before.every((turn, i) => isSame(turn, after[lead + i]!)))
      return [after.slice(0, end), after.slice(end)];
  }
  return [before, after];
}

/** The form of a row, by its fields. */
export function formatOf(fields: Fields): Exclude<Format, "auto" | "template"> {
  if ("messages" in fields || "conversations" in fields) return "messages";
  if ("prompt" in fields && "completion" in fields) return "prompt-completion";
  if ("instruction" in fields && "output" in fields) return "alpaca";
  if ("text" in fields) return "text";
  const found = clip(Object.keys(fields).join(", ")) || "(none)";
  throw new RowFault(
    `has the fields ${found}; expected messages, prompt and completion, instruction and output, or text (or a template in the recipe)`,
  );
}

/** A field's text; one that is optional may be missing, null or empty. */
function textField(fields: Fields, name: string, optional = false): string {
  const value = fields[name];
  if (optional && value == null) return "";
  if (value === undefined) throw new RowFault(`lacks the field '${name}'`);
  if (typeof value !== "string")
    throw new RowFault(`has ${clip(stringifyJson(value) ?? "nothing")} in '${name}', expected a string`);
  return optional ? value : nonEmpty(value, name);
}

function nonEmpty(text: string, name: string): string {
  if (text.trim() === "") throw new RowFault(`has an empty '${name}'`);
  return text;
}

/** Fields of a row's own system message, next to its turns. */
const SYSTEM = ["system", "system_prompt"];

/** The system message that a row has next to its turns; null for none. */
function systemOf(fields: Fields): string | null {
  for (const name of SYSTEM) {
    const text = textField(fields, name, true);
    if (text.trim() !== "") return text;
  }
  return null;
}

const isSystem = ({ message: { role } }: Turn): boolean => role === "system" || role === "developer";

/** A conversation with the system message that counts: the one among its turns, else the row's, else the recipe's. */
function chatOf(given: readonly Turn[], from: number, fields: Fields, options: FormatOptions): Example {
  const system = systemOf(fields) ?? options.system;
  const led = system === null || given.some(isSystem) ? given : [plainTurn("system", system), ...given];
  const answersFrom = from + led.length - given.length;
  const turns =
    options.thoughts === "drop" ? led.map(({ message, learned }) => ({ message: withoutThoughts(message), learned })) : led;
  const answers = turns.slice(answersFrom).filter(({ message: { role } }) => role === "assistant");
  if (answers.length === 0) throw new RowFault("has no turn of the assistant");
  if (answers.some(({ message, learned }) => learned && isSilent(message)))
    throw new RowFault("has an empty turn of the assistant");
  if (!answers.some(({ learned }) => learned))
    throw new RowFault("has no turn that is learned: all have weight 0 or train false");
  const unlearned = new Set([...turns.keys()].filter((i) => !turns[i]!.learned));
  const variables = variablesOf(fields, options.chatVariables);
  const messages = forTemplate(
    turns.map(({ message }) => message),
    templateFor(options, variables),
  );
  return { kind: "chat", messages, variables, answersFrom, unlearned };
}

/** A prompt and its completion: a user's and an assistant's turn, or plain text after plain text. */
function pair(
  prompt: string,
  completion: string,
  fields: Fields,
  options: FormatOptions,
  before: readonly Turn[] = [],
): Example {
  if (options.asChat)
    return chatOf([...before, plainTurn("user", prompt), plainTurn("assistant", completion)], 0, fields, options);
  const system = systemOf(fields) ?? options.system;
  return { kind: "pair", prompt: system === null ? prompt : `${system}\n\n${prompt}`, completion };
}

/** A prompt that is no row's, whatever its text, with a completion. Throws a RowFault for one that is empty. */
export const promptExample = (text: string, completion: string, options: FormatOptions): Example =>
  pair(nonEmpty(text, "prompt"), completion, {}, options);

/** The text of a list of turns, in JSON or as Python prints it: tables of texts have it. */
const TURNS_AS_TEXT = /^\s*\[\s*\{\s*(['"])(role|from|content|value)\1\s*:/;

function pairOf(fields: Fields, options: FormatOptions): Example {
  const { prompt, completion } = fields;
  if (typeof prompt === "string" && TURNS_AS_TEXT.test(prompt))
    throw new RowFault("has turns as text in 'prompt', expected a list of turns (or one turn whose content is that text)");
  if (!Array.isArray(prompt) && !Array.isArray(completion))
    return pair(textField(fields, "prompt"), textField(fields, "completion"), fields, options);
  // One of them may be a text: it is the turn that its place says.
  const turns = (name: "prompt" | "completion", role: string): Turn[] =>
    Array.isArray(fields[name]) ? turnsOf(fields, name) : [plainTurn(role, textField(fields, name))];
  const [before, after] = onceEach(turns("prompt", "user"), turns("completion", "assistant"));
  return chatOf([...before, ...after], before.length, fields, options);
}

/** As a chat the instruction is the user's turn; without a chat template it is put into the text of Stanford's Alpaca. */
function alpacaOf(fields: Fields, options: FormatOptions): Example {
  const instruction = textField(fields, "instruction");
  const input = textField(fields, "input", true);
  const output = textField(fields, "output");
  const history = historyOf(fields);
  if (options.asChat) return pair(input ? `${instruction}\n\n${input}` : instruction, output, fields, options, history);
  if (history.length > 0) throw new RowFault("has turns in 'history', which need a chat template");
  const about = input
    ? "Below is an instruction that describes a task, paired with an input that provides further context. "
    : "Below is an instruction that describes a task. ";
  const task = `${about}Write a response that appropriately completes the request.\n\n### Instruction:\n${instruction}\n\n`;
  return pair(`${task}${input ? `### Input:\n${input}\n\n` : ""}### Response:\n`, output, fields, options);
}

/** LLaMA-Factory's earlier turns: pairs of a question and its answer, which are learned as well. */
function historyOf({ history }: Fields): Turn[] {
  if (history == null) return [];
  const isPair = (turn: unknown) => Array.isArray(turn) && turn.length === 2 && turn.every((text) => typeof text === "string");
  if (!Array.isArray(history) || !history.every(isPair))
    throw new RowFault("has no list of questions with their answers in 'history'");
  return (history as readonly (readonly [string, string])[]).flatMap(([question, answer]) => [
    plainTurn("user", question),
    plainTurn("assistant", answer),
  ]);
}

/** Fields that each form reads. */
const READ: Readonly<Record<Exclude<Format, "auto" | "template">, readonly string[]>> = {
  messages: ["messages", "conversations"],
  "prompt-completion": ["prompt", "completion"],
  alpaca: ["instruction", "input", "output", "history"],
  text: ["text"],
};
/** Fields that rows of more than one answer have besides their prompt. */
const OF_KINDS: Readonly<Record<RowKind, readonly string[]>> = {
  single: [],
  prompt: [],
  paired: ["prompt", "chosen", "rejected"],
  paraphrased: ["prompt", "completion", "paraphrase"],
  labelled: ["prompt", "completion", "label"],
};
/** Fields that chats read besides. */
const OF_CHATS = [...SYSTEM, "tools", "chat_template_kwargs"];

/** Names of fields that say something and that the example made of them does not use; `format` is that of single answers. */
export function unusedFields(
  row: Fields,
  format: Exclude<Format, "template">,
  kind: RowKind,
  example: Example,
  chatTemplate: string | null,
): string[] {
  const fields = preferenceFields(row);
  const form = kind !== "single" ? "prompt-completion" : format === "auto" ? formatOf(fields) : format;
  const read = kind !== "single" ? OF_KINDS[kind] : form === "messages" && "messages" in fields ? ["messages"] : READ[form];
  const isChat = example.kind === "chat";
  const asks = (name: string) => isChat && chatTemplate !== null && isAsked(name, chatTemplate);
  return keysOf(fields).filter((name) => {
    if (saysNothing(fields[name])) return false;
    if (kind === "paired" && name === "prompt" && isChat) return !isSaidIn(fields[name], example);
    if (name === "tools") return !asks(name);
    if (name === "chat_template_kwargs") return !isChat;
    if (SYSTEM.includes(name))
      return isChat ? !example.messages.some(({ content }) => content === fields[name]) : form === "text";
    return !read.includes(name) && !OF_CHATS.includes(name);
  });
}

/** Whether a text is among what a chat's turns say; a list of turns is the chat. */
const isSaidIn = (text: unknown, { messages }: Chat): boolean =>
  typeof text !== "string" || messages.some(({ content }) => content.includes(text.trim()));

/** Names of arguments that the template does not read. */
export const unaskedArguments = (given: ChatVariables, chatTemplate: string | null): string[] =>
  Object.keys(given).filter((name) => chatTemplate === null || !isAsked(name, chatTemplate));

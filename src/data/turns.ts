// The turns of a conversation, as the rows of many trainers write them, in one form: role and content, thoughts and calls of
// tools under the names that chat templates read. What cannot be read is refused by its place in the row.

import { asksAnyKey, isAsked } from "./asked.ts";
import { Float, keysOf, parseJson, stringifyJson } from "./json.ts";
import { clip, type Fields, RowFault, twiceIn } from "./jsonl.ts";

/** A turn of a conversation. What else the row says of it (a name, an id) goes to the chat template as it is. */
export type Message = { readonly role: string; readonly content: string; readonly [more: string]: unknown };

/** `learned`: false where the row says that a turn of the assistant is context alone. */
export type Turn = { readonly message: Message; readonly learned: boolean };

const ROLES = ["system", "developer", "user", "assistant", "tool", "ipython"];
/** ShareGPT's names of the roles, in turns that say "from" and "value". */
const SHAREGPT_ROLES = new Map([
  ["human", "user"],
  ["gpt", "assistant"],
  ["function_call", "assistant"],
  ["observation", "tool"],
]);

/** The turns in a field of a row. Throws a RowFault. */
export function turnsOf(fields: Fields, field: string): Turn[] {
  const turns = asList(fields[field]);
  if (turns === undefined) throw new RowFault(`lacks the field '${field}'`);
  if (!Array.isArray(turns) || turns.length === 0) throw new RowFault(`has no list of turns in '${field}'`);
  return turns.map((turn: unknown, i) => turnOf(turn, `${field}[${i}]`));
}

/** A list, or the JSON text of one, as tables of texts have it. */
function asList(value: unknown): unknown {
  if (typeof value !== "string" || !value.trimStart().startsWith("[")) return value;
  let list: unknown;
  try {
    list = parseJson(value);
  } catch {
    return value;
  }
  const fault = twiceIn(value, list);
  if (fault !== null) throw new RowFault(fault);
  return list;
}

/** A turn of text, as a row without turns makes it. */
export const plainTurn = (role: string, content: string): Turn => ({ message: { role, content }, learned: true });

function turnOf(turn: unknown, place: string): Turn {
  if (!isObject(turn)) throw new RowFault(`has no object in ${place}`);
  const [roleKey, contentKey] = "from" in turn && !("role" in turn) ? ["from", "value"] : ["role", "content"];
  const { [roleKey]: said, [contentKey]: written, ...rest } = withoutNulls(turn);
  const role = roleKey === "from" ? (SHAREGPT_ROLES.get(String(said)) ?? said) : said;
  if (typeof role !== "string" || !ROLES.includes(role))
    throw new RowFault(`has ${clip(stringify(said))} as ${place}.${roleKey}; known are ${ROLES.join(", ")}`);
  if (roleKey === "from" && rest["content"] !== undefined && rest["content"] !== written)
    throw new RowFault(`has ${place}.value and another ${place}.content: leave one out`);
  const { learned, more } = learnedOf(rest, role, place);
  if (roleKey === "from" && said === "function_call")
    return { message: { ...more, role, content: "", tool_calls: callsIn(written, `${place}.${contentKey}`) }, learned };
  const calls = toolCallsOf(more["tool_calls"], place);
  const { thoughts, content, others } = thoughtsOf(more, written, place, `${place}.${contentKey}`, calls !== null);
  if (thoughts !== null && role !== "assistant")
    throw new RowFault(`has thoughts in ${place}, which is no turn of the assistant`);
  const { tool_calls: _, ...kept } = others;
  return {
    message: {
      ...(thoughts === null ? {} : { thinking: thoughts }),
      ...kept,
      role,
      content,
      ...named(calls),
      ...reasoning(thoughts),
    },
    learned,
  };
}

const named = (calls: readonly unknown[] | null) => (calls === null ? {} : { tool_calls: calls });
/** Templates read thoughts as `reasoning_content`, some as `thinking`: both are there, as transformers has it. */
const reasoning = (thoughts: string | null) => (thoughts === null ? {} : { reasoning_content: thoughts });

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const stringify = (value: unknown): string => stringifyJson(value) ?? "nothing";

/** What is null says nothing: `datasets` writes each key of one turn into all turns. */
function withoutNulls(object: Record<string, unknown>): Record<string, unknown> {
  if (Object.values(object).every((value) => value !== null)) return object;
  return Object.fromEntries(keysOf(object).flatMap((key) => (object[key] === null ? [] : [[key, object[key]]])));
}

/**
 * Whether a turn of the assistant is an example or context: OpenAI's and Mistral's `weight`, and `train`, which is `training`
 * to Axolotl and `loss` to ms-swift.
 */
const LEARNED = { weight: [0, 1], train: [false, true], training: [false, true], loss: [false, true] } as const;
type LearnedKey = keyof typeof LEARNED;

function learnedOf(rest: Record<string, unknown>, role: string, place: string) {
  const { weight, train, training, loss, ...more } = rest;
  const given = Object.entries({ weight, train, training, loss }).filter(([, value]) => value !== undefined);
  const said = given.map(([key, value]) => {
    const plain = value instanceof Float ? value.value : value; // 1.0
    const [no, yes] = LEARNED[key as LearnedKey];
    if (plain !== no && plain !== yes)
      throw new RowFault(
        `has ${clip(stringify(value))} in ${place}.${key}, expected ${key === "weight" ? "0 or 1" : "true or false"}`,
      );
    if (plain === true && role !== "assistant")
      throw new RowFault(`has ${key} true in ${place}: only turns of the assistant are learned (train_on = "all" learns all)`);
    return { key, plain, learned: plain === yes };
  });
  const [first = null, ...others] = said;
  const other = others.find(({ learned }) => learned !== first!.learned);
  if (other) throw new RowFault(`has ${first!.key} ${first!.plain} and ${other.key} ${other.plain} in ${place}: leave one out`);
  return { more, learned: first?.learned ?? true };
}

/** Keys of a turn that are read here; of the others each goes to the chat template, if that asks for it. */
const READ = ["role", "content", "tool_calls", "tool_call_id", ...["reasoning_content", "reasoning", "thinking"]];

/** Names of what a turn says besides, where the template does not ask for it by name. */
export function unreadKeys(message: Message, chatTemplate: string | null): string[] {
  if (chatTemplate !== null && asksAnyKey(chatTemplate)) return [];
  return keysOf(message).filter((key) => !READ.includes(key) && (chatTemplate === null || !isAsked(key, chatTemplate)));
}

/** The names under which data sets have thoughts. */
const THOUGHTS = ["reasoning_content", "reasoning", "thinking"];

function thoughtsOf(more: Record<string, unknown>, written: unknown, place: string, at: string, silent: boolean) {
  const found = THOUGHTS.filter((name) => more[name] !== undefined && more[name] !== "");
  for (const name of found) if (typeof more[name] !== "string") throw new RowFault(`has no text in ${place}.${name}`);
  const [first, ...others] = found;
  const different = others.find((name) => more[name] !== more[first!]);
  if (different) throw new RowFault(`has different thoughts in ${place}.${first} and ${place}.${different}: leave one out`);
  const thoughts = first === undefined ? null : (more[first] as string);
  const rest: Record<string, unknown> = Object.fromEntries(
    Object.entries(more).filter(([name]) => !(THOUGHTS.includes(name) && more[name] === "")),
  );
  const content = written === undefined && (silent || thoughts !== null) ? "" : contentOf(written, at);
  if (thoughts === null) return { others: rest, thoughts, content };
  const inside = splitThoughts(content);
  if (inside.thoughts === null) return { others: rest, thoughts, content };
  if (inside.thoughts.trim() !== thoughts.trim())
    throw new RowFault(`has thoughts in ${place}.${first} and others within ${at}: leave one out`);
  return { others: rest, thoughts, content: inside.answer };
}

const BLOCK = /^\s*<think>([\s\S]*?)<\/think>[^\S\n]*\n{0,2}/;

/** Thoughts at the beginning of a content, in <think> marks; null where there are none. */
export function splitThoughts(content: string): { readonly thoughts: string | null; readonly answer: string } {
  const block = BLOCK.exec(content);
  return block ? { thoughts: block[1]!, answer: content.slice(block[0].length) } : { thoughts: null, answer: content };
}

/** Keys of a part of a content: its text, and what a service was to do with it. */
const OF_PARTS = ["type", "text", "cache_control"];

/** Whether a value is there for the form alone. */
export const saysNothing = (value: unknown): boolean =>
  value == null || value === "" || (typeof value === "object" && Object.keys(value).length === 0);

/** A text, or OpenAI's list of parts, of which only texts can be read: they are put together. */
function contentOf(content: unknown, at: string): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) throw new RowFault(`has no text in ${at}`);
  return content
    .map((part: unknown, i) => {
      const { type, text } = isObject(part) ? part : { type: undefined, text: undefined };
      if (type !== undefined && type !== "text")
        throw new RowFault(`has a part of type ${clip(stringify(type))} in ${at}[${i}]; only text is trained on`);
      if (typeof text !== "string") throw new RowFault(`has no text in ${at}[${i}]`);
      const more = keysOf(part as object).find((key) => !OF_PARTS.includes(key) && !saysNothing((part as Fields)[key]));
      if (more !== undefined) throw new RowFault(`has '${clip(more)}' in ${at}[${i}]; of a part only its text is trained on`);
      return text;
    })
    .join("");
}

/** Calls of tools; none for an empty list, which says nothing. */
function toolCallsOf(calls: unknown, place: string): readonly unknown[] | null {
  if (calls === undefined) return null;
  if (!Array.isArray(calls)) throw new RowFault(`has no list in ${place}.tool_calls`);
  if (calls.length === 0) return null;
  return calls.map((call: unknown, i) => {
    const at = `${place}.tool_calls[${i}]`;
    if (!isObject(call)) throw new RowFault(`has no object in ${at}`);
    const whole = withoutNulls(call);
    const { function: inner } = whole;
    if (inner !== undefined && !isObject(inner)) throw new RowFault(`has no object in ${at}.function`);
    const { name } = withoutNulls(inner === undefined ? whole : (inner as Record<string, unknown>));
    if (typeof name !== "string" || name === "") throw new RowFault(`has no name of a tool in ${at}`);
    return inner === undefined ? whole : { ...whole, function: withoutNulls(inner as Record<string, unknown>) };
  });
}

/** LLaMA-Factory's function_call: the JSON text of a call, or of several. */
function callsIn(written: unknown, at: string): readonly unknown[] {
  const wrong = () => new RowFault(`has no call of a tool in ${at}: expected the JSON text of {"name": ..., "arguments": ...}`);
  if (typeof written !== "string") throw wrong();
  let parsed: unknown;
  try {
    parsed = parseJson(written);
  } catch {
    throw wrong();
  }
  const calls = Array.isArray(parsed) ? parsed : [parsed];
  if (calls.length === 0 || !calls.every((call) => isObject(call) && typeof call["name"] === "string")) throw wrong();
  return calls.map((call) => ({ type: "function", function: call }));
}

/** A turn that says nothing: neither text nor thoughts nor a call. */
export const isSilent = ({ content, ...more }: Message): boolean =>
  content.trim() === "" && more["tool_calls"] === undefined && more["reasoning_content"] === undefined;

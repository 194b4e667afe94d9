// The base model's tokenizer and chat template, from its folder. Hugging Face's own package decodes; how a text becomes words
// (added-tokens.ts, pre-tokenise.ts) and these become tokens (bpe.ts) is ours: for the former the package differs from the
// original, and for the latter it takes several times as long.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { RequestError, textOf } from "../base/errors.ts";
import { type AddedToken, sectioner } from "./added-tokens.ts";
import type { Span } from "./answers.ts";
import { Bpe, type BpeModel } from "./bpe.ts";
import type { Chat } from "./format.ts";
import { DATE, parseDay, strftimeNow, Template, TemplateError } from "./jinja.ts";
import { clip, RowFault } from "./jsonl.ts";
import { type Json, normaliserOf, preTokeniserOf } from "./pre-tokenise.ts";
import { type Place, placeTokens, type TokenRun } from "./token-offsets.ts";
import { hasFlags, optionalJson, readJson, SPECIALS, tokenizerConfig, tokenText, unusable } from "./tokenizer-config.ts";
import { resolveTokenizer } from "./tokenizer-json.ts";

export type Tokenizer = {
  /** Ids of a text; special tokens in it are recognised, none are added. */
  readonly encode: (text: string) => number[];
  /** The ids of the joined pieces, as `encode` gives them, and the pieces that each token lies in: null where none can tell. */
  readonly encodePieces: (pieces: readonly string[]) => { readonly ids: number[]; readonly places: readonly Place[] | null };
  /** For people to read: a byte order mark spelled in bytes may be lost. */
  readonly decode: (ids: readonly number[]) => string;
  /** The same without special tokens. */
  readonly decodeText: (ids: readonly number[]) => string;
  readonly bos: number | null;
  readonly eos: number | null;
  /**
   * Whether plain text begins with `bos`: where tokenizer.json puts it there. transformers 5 does not hear of "add_bos_token".
   */
  readonly addBos: boolean;
  readonly hasChatTemplate: boolean;
  /** The text of the chat template; null for none. */
  readonly chatTemplate: string | null;
  /** The same with the template that the model has for chats with tools; null where it has no such template. */
  readonly toolUse: Tokenizer | null;
  /** The same tokenizer with the chat template of a file. Throws a RequestError, `data.template`, where that is not one. */
  readonly withChatTemplate: (file: string) => Tokenizer;
  /** The text of a conversation; with `prompt` it ends where the assistant's next turn begins. Throws a RowFault. */
  readonly renderChat: (chat: Chat, prompt: boolean) => string;
  /** Where the chat template marks by {% generation %} what the assistant writes, in the text without a prompt. */
  readonly generatedIn: (chat: Chat) => readonly Span[];
  /** Whether a conversation's template has asked for today's date, and got the fixed one, since this was last asked. */
  readonly usedDate: () => boolean;
  /** Texts of the special tokens, longest first. */
  readonly specials: readonly string[];
  /** The first token within a text that the tokenizer itself calls special; null for none. */
  readonly specialIn: (text: string) => string | null;
};

/**
 * Reads tokenizer.json, tokenizer_config.json, and where they are there special_tokens_map.json, chat_template.jinja and those
 * of additional_chat_templates. Throws a RequestError, `model.tokenizer`, that names the file.
 */
export function loadTokenizer(folder: string): Tokenizer {
  const config = tokenizerConfig(folder);
  const templates = chatTemplatesOf(folder, config);
  return withTemplate(readTokenizer(folder, config), templates.get("default") ?? null, templates.get("tool_use") ?? null);
}

/** The tokenizer whose chat template a conversation with these variables goes through. */
export const tokenizerFor = (tokenizer: Tokenizer, variables: Chat["variables"]): Tokenizer =>
  variables["tools"] == null ? tokenizer : (tokenizer.toolUse ?? tokenizer);

/** What a chat template is given of the model's special tokens, by name. */
type Read = Omit<
  Tokenizer,
  "hasChatTemplate" | "chatTemplate" | "toolUse" | "withChatTemplate" | "renderChat" | "generatedIn" | "usedDate"
> & {
  readonly named: Json;
};

function readTokenizer(folder: string, config: Json): Read {
  const json = readJson(folder, "tokenizer.json");
  const { hub, encode, added, byteLevel } = open(folder, json, config);
  const specialText = (name: string) => tokenText(config[name]) ?? undefined;
  const id = (name: string): number | null => {
    const text = specialText(name);
    return added.find(({ content }) => content === text)?.id ?? null;
  };
  const [bos, eos] = [id("bos_token"), id("eos_token")];
  const texts = added.map(({ content }) => content);
  const spelling = { byteLevel, added: new Set(texts) };
  const decode = (ids: readonly number[], skips: boolean): string =>
    ids.length === 0 ? "" : hub.decode([...ids], { skip_special_tokens: skips, clean_up_tokenization_spaces: false });
  return {
    encode: (text) => encode(text).ids,
    encodePieces: (pieces) => {
      const { ids, runs } = encode(pieces.join(""));
      return { ids, places: placeTokens(runs, pieces, spelling) };
    },
    decode: (ids) => decode(ids, false),
    decodeText: (ids) => decode(ids, true),
    bos,
    eos,
    addBos: bos !== null && hub.encode("a", { add_special_tokens: true }).ids[0] === bos,
    specials: texts.sort((a, b) => b.length - a.length),
    specialIn: finderOf(added.filter(({ special }) => special === true).map(({ content }) => content)),
    named: specialTexts(config),
  };
}

function finderOf(marks: readonly string[]): Tokenizer["specialIn"] {
  if (marks.length === 0) return () => null;
  const pattern = new RegExp(marks.map((mark) => mark.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")).join("|"));
  return (text) => pattern.exec(text)?.[0] ?? null;
}

/** What the tokenizer in `folder` is made of, as transformers computes it, and the ids of two tokens of its settings. */
export function tokenizerParts(folder: string) {
  const config = tokenizerConfig(folder);
  const json = readJson(folder, "tokenizer.json");
  const { added } = open(folder, json, config); // which resolves `json`, too
  const { vocab, unk_token: unknown } = json["model"] as { vocab: Record<string, number>; unk_token?: string | null };
  const id = (text: string | null | undefined) =>
    text == null ? null : (added.find(({ content }) => content === text)?.id ?? vocab[text] ?? null);
  return {
    json,
    added,
    unknown: id(tokenText(config["unk_token"]) ?? unknown),
    padding: id(tokenText(config["pad_token"])),
  };
}

type ChatTemplate = { readonly text: string; readonly compiled: Template };

/** A tokenizer with a chat template, or none, and with one for chats with tools. */
function withTemplate(read: Read, template: ChatTemplate | null, ofTools: ChatTemplate | null): Tokenizer {
  const { named, ...tokenizer } = read;
  let dated = false;
  const today = (date: unknown) => {
    const day = parseDay(date == null ? DATE : String(date));
    return strftimeNow(day ?? parseDay(DATE)!, () => {
      if (day === null) throw new TemplateError(`date_string is '${date}', expected a day as 2026-07-26 or 26 Jul 2026`);
      dated = true;
    });
  };
  // As transformers has it: all special tokens by name, and null where there are no tools or documents.
  const names = { ...named, tools: null, documents: null, date_string: DATE, strftime_now: today(DATE) };
  const rendered = ({ messages, variables }: Chat, prompt: boolean) => {
    if (!template) throw new RowFault("is a conversation, but the base model has no chat template");
    try {
      const date = variables["date_string"] === undefined ? {} : { strftime_now: today(variables["date_string"]) };
      return template.compiled.renderMarked({ ...names, ...date, ...variables, messages, add_generation_prompt: prompt });
    } catch (error) {
      if (!(error instanceof TemplateError)) throw error;
      throw new RowFault(`does not fit the model's chat template: ${clip(textOf(error))}`);
    }
  };
  const marksGenerated = template !== null && /\{%[-+]?\s*generation\b/.test(template.text);
  const toolUse = ofTools && withTemplate(read, ofTools, null);
  return {
    ...tokenizer,
    hasChatTemplate: template !== null,
    chatTemplate: template?.text ?? null,
    toolUse,
    withChatTemplate: (file) => withTemplate(read, readTemplate(file), null),
    renderChat: (chat, prompt) => rendered(chat, prompt).text,
    generatedIn: (chat) => (marksGenerated ? rendered(chat, false).generated : []),
    usedDate: () => {
      const used = [dated, toolUse?.usedDate() ?? false];
      dated = false;
      return used.includes(true);
    },
  };
}

/** A chat template that a recipe names. */
function readTemplate(file: string): ChatTemplate {
  try {
    const text = readFileSync(file, "utf8");
    return { text, compiled: new Template(text) };
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    throw new RequestError(
      "data.template",
      `${file}: ${missing ? "no such file" : `is no chat template: ${clip(textOf(error))}`}`,
      "chat_template is true, false or the path of a Jinja template, relative to the recipe",
    );
  }
}

type Encoding = { readonly ids: number[]; readonly runs: readonly TokenRun[] };
type Opened = {
  readonly hub: HubTokenizer;
  readonly encode: (text: string) => Encoding;
  readonly added: readonly AddedToken[];
  /** Whether each character of a token is a byte. */
  readonly byteLevel: boolean;
};

function open(folder: string, json: Json, config: Json): Opened {
  try {
    resolveTokenizer(json, config, optionalJson(folder, "config.json")["model_type"]);
    const added = addedTokensOf(folder, json, config);
    const model = { ...(json["model"] as Json), merges: [] }; // merging is bpe.ts's
    const hub = new HubTokenizer({ ...json, model, normalizer: null, pre_tokenizer: null, added_tokens: added }, config);
    const byteLevel = JSON.stringify(json["decoder"] ?? null).includes('"ByteLevel"');
    const encode = encoderOf(json, added);
    hub.decode(encode("a").ids); // what is broken inside shows when it is used
    return { hub, encode, added, byteLevel };
  } catch (error) {
    throw unusable(join(folder, "tokenizer.json"), `cannot be used: ${clip(textOf(error))}`);
  }
}

/**
 * The added tokens of tokenizer.json, with those that transformers adds by tokenizer_config.json, and by added_tokens.json of
 * versions up to 4. Of a token that is named several times the last counts.
 */
function addedTokensOf(folder: string, json: Json, config: Json): AddedToken[] {
  const listed = json["added_tokens"] ?? [];
  if (!Array.isArray(listed) || !listed.every(isAdded))
    throw new Error(`its added_tokens is ${JSON.stringify(listed)}, expected a list of tokens with an id, a content and flags`);
  const tokens = new Map((listed as AddedToken[]).map((token) => [token.content, token]));
  const vocab = new Map(Object.entries((json["model"] as Json)["vocab"] as Record<string, number>));
  const lastId = () => [...vocab.values(), ...[...tokens.values()].map(({ id }) => id)].reduce((a, b) => Math.max(a, b), -1);
  const add = (token: Omit<AddedToken, "id">) => {
    const id = tokens.get(token.content)?.id ?? vocab.get(token.content) ?? lastId() + 1;
    tokens.set(token.content, { ...token, id });
  };
  const named = [...SPECIALS, ...Object.keys(config).filter((key) => isOwnToken(key, config[key]))].map((key) => config[key]);
  const specials = [...named, ...(config["extra_special_tokens"] as readonly unknown[])];
  const decoder = config["added_tokens_decoder"];
  if (decoder != null) for (const token of Object.values(decoder as Record<string, AddedToken>)) add(token);
  else {
    const texts = new Set(specials.map(tokenText));
    const ids = new Set([...tokens.values()].map(({ id }) => id));
    const older = Object.entries(optionalJson(folder, "added_tokens.json")).filter(([, id]) => !ids.has(id as number));
    for (const [content] of older.sort(([, a], [, b]) => Number(a) - Number(b)))
      add({ content, special: texts.has(content), normalized: !texts.has(content) });
  }
  const known = new Set(tokens.keys());
  for (const token of specials) {
    const content = tokenText(token);
    if (content && !known.has(content)) add({ special: true, ...(typeof token === "object" ? token : {}), content });
  }
  return [...tokens.values()];
}

/** A token of the model's own name, such as image_token. */
const isOwnToken = (key: string, value: unknown): boolean =>
  key.endsWith("_token") && !SPECIALS.includes(key) && typeof value === "string";

const isAdded = (token: unknown): boolean => {
  const { id, content } = (token ?? {}) as { id?: unknown; content?: unknown };
  return Number.isInteger(id) && (id as number) >= 0 && typeof content === "string" && hasFlags(token as Json);
};

function encoderOf(json: Json, added: readonly AddedToken[]): (text: string) => Encoding {
  const sectionsOf = sectioner(added, normaliserOf(json["normalizer"]));
  const { cut, spell } = preTokeniserOf(json["pre_tokenizer"]);
  const bpe = new Bpe(json["model"] as BpeModel, spell);
  const whole = new Map(added.map((token) => [token, { tokens: [token.content], length: 0, isSpelt: false }]));
  return (text) => {
    const ids: number[] = [];
    const runs = sectionsOf(text).map(({ from, to, sections }): TokenRun => {
      const words: string[] = [];
      const merged: TokenRun["merged"][number][] = [];
      for (const [i, section] of sections.entries()) {
        if ("token" in section) {
          ids.push(section.token.id);
          words.push(section.token.content);
          merged.push(whole.get(section.token)!);
          continue;
        }
        for (const word of cut(section.text, from === 0 && i === 0)) {
          const made = bpe.merged(word);
          for (const id of made.ids) ids.push(id);
          words.push(word);
          merged.push(made);
        }
      }
      return { from, to, words, merged, isAdded: sections.length === 1 && "token" in sections[0]! };
    });
    return { ids, runs };
  };
}

/** The special tokens that a template may write: bos_token, eos_token, pad_token, ... */
function specialTexts(config: Json): Json {
  const named = Object.keys(config).filter((name) => /^[a-z_]+_token$/.test(name) && tokenText(config[name]) !== null);
  return Object.fromEntries(named.map((name) => [name, tokenText(config[name])]));
}

/** As transformers: files go before tokenizer_config.json, all of them before all of it. */
const ADDITIONAL = "additional_chat_templates";

/**
 * Chat templates by name: "default" of chat_template.jinja, others of their folder; where there is no file, those in
 * tokenizer_config.json. "tool_use" is that of chats with tools.
 */
function chatTemplatesOf(folder: string, config: Json): ReadonlyMap<string, ChatTemplate> {
  const texts = new Map<string, readonly [text: string, file: string]>();
  const [main, others] = [join(folder, "chat_template.jinja"), join(folder, ADDITIONAL)];
  const names = existsSync(others) ? readable(others, () => readdirSync(others)) : [];
  const files = names
    .filter((name) => name.endsWith(".jinja"))
    .map((name) => [name.slice(0, -".jinja".length), join(others, name)] as const);
  if (existsSync(main)) files.unshift(["default", main]);
  for (const [name, file] of files) texts.set(name, [readable(file, () => readFileSync(file, "utf8")), file]);
  const settings = join(folder, "tokenizer_config.json");
  const inConfig = texts.size > 0 ? null : config["chat_template"];
  const listed =
    typeof inConfig === "string" ? [{ name: "default", template: inConfig }] : ((inConfig ?? []) as readonly Json[]);
  for (const { name, template } of listed) texts.set(String(name), [String(template), settings]);
  const used = [...texts].filter(([name]) => name === "default" || name === "tool_use");
  return new Map(used.map(([name, [text, file]]) => [name, compiled(text, file)]));
}

function compiled(text: string, file: string): ChatTemplate {
  return readable(file, () => ({ text, compiled: new Template(text) }));
}

/** What `read` makes of a file of chat templates; its errors name the file. */
function readable<T>(file: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw unusable(file, `its chat template cannot be read: ${clip(textOf(error))}`);
  }
}

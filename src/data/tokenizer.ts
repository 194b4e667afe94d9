// The base model's tokenizer and chat template, from its folder, by Hugging Face's own packages.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { BPE, Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { RequestError, textOf } from "../base/errors.ts";
import type { Chat } from "./format.ts";
import { parseDay, strftimeNow, Template, TemplateError } from "./jinja.ts";
import { clip, RowFault } from "./jsonl.ts";
import { mendTokenizer } from "./mend.ts";
import { type Place, placeTokens } from "./surface.ts";

export type Tokenizer = {
  /** Ids of a text; special tokens in it are recognised, none are added. */
  readonly encode: (text: string) => number[];
  /** The ids of the joined pieces, as `encode` gives them, and the pieces that each token lies in: null where none can tell. */
  readonly encodePieces: (pieces: readonly string[]) => { readonly ids: number[]; readonly places: readonly Place[] | null };
  /** For people to read: a byte order mark spelled in bytes may be lost. */
  readonly decode: (ids: readonly number[]) => string;
  readonly bos: number | null;
  readonly eos: number | null;
  /** Whether the model expects plain text to begin with `bos`. */
  readonly addBos: boolean;
  readonly hasChatTemplate: boolean;
  /** The text of a conversation; with `prompt` it ends where the assistant's next turn begins. Throws a RowFault. */
  readonly renderChat: (chat: Chat, prompt: boolean) => string;
  /** Whether a conversation's template has asked for today's date, and got the fixed one. */
  readonly usedDate: () => boolean;
  /** Texts of the special tokens, longest first. */
  readonly specials: readonly string[];
};

type Json = Record<string, unknown>;

/** What templates take for today, unless the conversation's `date_string` says otherwise: a run reads the same on any day. */
export const DATE = "26 Jul 2024";

/**
 * Reads tokenizer.json, tokenizer_config.json, and where they are there special_tokens_map.json and chat_template.jinja. Throws
 * a RequestError, `model.tokenizer`, that names the file.
 */
export function loadTokenizer(folder: string): Tokenizer {
  const json = readJson(folder, "tokenizer.json");
  const config = { ...optionalJson(folder, "special_tokens_map.json"), ...optionalJson(folder, "tokenizer_config.json") };
  const hub = open(folder, json, config);
  const specialText = (name: string) => tokenText(config[name]) ?? undefined;
  const id = (name: string): number | null => hub.token_to_id(specialText(name) ?? "") ?? null;
  const [bos, eos] = [id("bos_token"), id("eos_token")];
  const chat = chatTemplateOf(folder, config);
  let dated = false;
  const today = (date: unknown) => {
    const day = (typeof date === "string" ? parseDay(date) : null) ?? parseDay(DATE)!;
    return strftimeNow(day, () => {
      dated = true;
    });
  };
  // As transformers has it: all special tokens by name, and null where there are no tools or documents.
  const names = { ...specialTexts(config), tools: null, documents: null, date_string: DATE, strftime_now: today(DATE) };
  const added = [...hub.get_added_tokens_decoder().values()].map(({ content }) => content);
  const spelling = { byteLevel: JSON.stringify(json["decoder"] ?? null).includes('"ByteLevel"'), added: new Set(added) };
  const encode = (text: string) => (text === "" ? { ids: [], tokens: [] } : hub.encode(text, { add_special_tokens: false }));
  return {
    encode: (text) => encode(text).ids,
    encodePieces: (pieces) => {
      const { ids, tokens } = encode(pieces.join(""));
      return { ids, places: placeTokens(tokens, pieces, spelling) };
    },
    decode: (ids) =>
      ids.length === 0 ? "" : hub.decode([...ids], { skip_special_tokens: false, clean_up_tokenization_spaces: false }),
    bos,
    eos,
    addBos: bos !== null && addsBos(hub, bos, config),
    hasChatTemplate: chat !== null,
    renderChat: ({ messages, variables }, prompt) => {
      if (!chat) throw new RowFault("is a conversation, but the base model has no chat template");
      try {
        const date = variables["date_string"] === undefined ? {} : { strftime_now: today(variables["date_string"]) };
        return chat.render({ ...names, ...date, ...variables, messages, add_generation_prompt: prompt });
      } catch (error) {
        if (!(error instanceof TemplateError)) throw error;
        throw new RowFault(`does not fit the model's chat template: ${clip(textOf(error))}`);
      }
    },
    usedDate: () => dated,
    specials: added.sort((a, b) => b.length - a.length),
  };
}

const unusable = (path: string, why: string, hint?: string): RequestError =>
  new RequestError("model.tokenizer", `${path}: ${why}`, hint);

const optionalJson = (folder: string, name: string): Json => (existsSync(join(folder, name)) ? readJson(folder, name) : {});

function readJson(folder: string, name: string): Json {
  const path = join(folder, name);
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if ((error as { code?: string }).code === "ENOENT")
      throw unusable(path, "no such file", "the model's folder must hold its tokenizer");
    throw unusable(path, `cannot be read: ${clip(textOf(error))}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw unusable(path, "is no JSON object");
  return value as Json;
}

function open(folder: string, json: Json, config: Json): HubTokenizer {
  try {
    mendTokenizer(json);
    const hub = new HubTokenizer(json, config);
    quicken(hub);
    hub.decode(hub.encode("a").ids); // what is broken inside shows when it is used
    return hub;
  } catch (error) {
    throw unusable(join(folder, "tokenizer.json"), `cannot be used: ${clip(textOf(error))}`);
  }
}

/** Words whose tokens are kept at hand. */
const CACHED_WORDS = 50_000;

/** The package's own cache of words moves an entry at every hit, which takes half of all time; this one forgets all when full. */
function quicken(hub: HubTokenizer): void {
  const words = new Map<string, string[]>();
  const cache = {
    get: (word: string) => words.get(word),
    put: (word: string, tokens: string[]) => {
      if (words.size === CACHED_WORDS) words.clear();
      words.set(word, tokens);
    },
    clear: () => words.clear(),
  };
  if (hub.model instanceof BPE) Object.assign(hub.model, { cache });
}

/** A token in tokenizer_config.json is a text, or an object with one. */
function tokenText(token: unknown): string | null {
  if (typeof token === "string") return token;
  const content = (token as { content?: unknown } | null | undefined)?.content;
  return typeof content === "string" ? content : null;
}

/** The special tokens that a template may write: bos_token, eos_token, pad_token, ... */
function specialTexts(config: Json): Json {
  const named = Object.keys(config).filter((name) => /^[a-z_]+_token$/.test(name) && tokenText(config[name]) !== null);
  return Object.fromEntries(named.map((name) => [name, tokenText(config[name])]));
}

function addsBos(hub: HubTokenizer, bos: number, config: Json): boolean {
  if (typeof config["add_bos_token"] === "boolean") return config["add_bos_token"];
  return hub.encode("a", { add_special_tokens: true }).ids[0] === bos;
}

/** chat_template.jinja, or the template in tokenizer_config.json: one text, or several by name ("default" counts). */
function chatTemplateOf(folder: string, config: Json): Template | null {
  const file = join(folder, "chat_template.jinja");
  const inConfig = config["chat_template"];
  const named: unknown[] = Array.isArray(inConfig) ? inConfig : [];
  const found = named.find((item) => (item as Json | null)?.["name"] === "default") as Json | undefined;
  try {
    const text = existsSync(file) ? readFileSync(file, "utf8") : (found?.["template"] ?? inConfig);
    return typeof text === "string" ? new Template(text) : null;
  } catch (error) {
    throw unusable(
      existsSync(file) ? file : join(folder, "tokenizer_config.json"),
      `its chat template cannot be read: ${clip(textOf(error))}`,
    );
  }
}

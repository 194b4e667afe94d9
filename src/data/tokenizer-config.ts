// The settings of a tokenizer that are not in tokenizer.json. They are read strictly: a chat template or an end mark of another
// type than transformers writes would count as none, and rows would be trained without it.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { jsonProblem, parseJsonFile } from "../base/json-file.ts";
import { clip } from "./jsonl.ts";
import type { Json } from "./pre-tokenise.ts";

export const unusable = (path: string, why: string, hint?: string): RequestError =>
  new RequestError("model.tokenizer", `${path}: ${why}`, hint);

export const SPECIALS = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/** A token in tokenizer_config.json is a string, or an object with one. */
export function tokenText(token: unknown): string | null {
  if (typeof token === "string") return token;
  const content = (token as { content?: unknown } | null | undefined)?.content;
  return typeof content === "string" ? content : null;
}

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value);
const FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"] as const;
/** Whether each flag of a token is true or false: the tokenizers library refuses what is neither. */
export const hasFlags = (token: Json): boolean => FLAGS.every((flag) => ["boolean", "undefined"].includes(typeof token[flag]));
const isToken = (value: unknown): boolean => tokenText(value) !== null && (!isObject(value) || hasFlags(value));
const isTemplate = (value: unknown): boolean =>
  isObject(value) && typeof value["name"] === "string" && typeof value["template"] === "string";
const tokensOf = (value: unknown): readonly unknown[] | null =>
  Array.isArray(value) ? value : isObject(value) ? Object.values(value) : null;

/** Further special tokens: those of version 5's key, where it has any, or of version 4's; names are there besides. */
function extraOf(extra: unknown, additional: unknown): readonly unknown[] {
  const [own, older] = [tokensOf(extra) ?? [], tokensOf(additional) ?? []];
  return isObject(extra) ? [...own, ...older] : own.length > 0 ? own : older;
}

type Expected = { readonly what: string; readonly is: (value: unknown) => boolean };
const TOKEN: Expected = { what: "a text, or an object with a content and flags", is: isToken };
const TOKENS: Expected = { what: "a list of tokens", is: (value) => tokensOf(value)?.every(isToken) ?? false };
/** What is looked at, where it is there and not null. */
const KEYS: Readonly<Record<string, Expected>> = {
  ...Object.fromEntries(SPECIALS.map((key) => [key, TOKEN])),
  additional_special_tokens: TOKENS,
  extra_special_tokens: TOKENS,
  added_tokens_decoder: {
    what: "objects with a content and flags, by id",
    is: (value) => isObject(value) && Object.values(value).every((token) => isObject(token) && isToken(token)),
  },
  tokenizer_class: { what: "the name of a class", is: (value) => typeof value === "string" },
  chat_template: {
    what: "a text, or a list of templates with a name and a template",
    is: (value) => typeof value === "string" || (Array.isArray(value) && value.every(isTemplate)),
  },
};

/**
 * tokenizer_config.json, as transformers 5 reads it: special_tokens_map.json, which versions up to 4 wrote, counts where the
 * former has no added_tokens_decoder, and then more than what it says itself. Further special tokens are those of
 * `extra_special_tokens`, a list. Throws a RequestError, `model.tokenizer`, that names the file and the key.
 */
export function tokenizerConfig(folder: string): Json {
  const read = (name: string): Json => {
    const config = optionalJson(folder, name);
    for (const [key, { what, is }] of Object.entries(KEYS)) {
      const value = config[key];
      if (value != null && !is(value))
        throw unusable(join(folder, name), `its ${key} is ${clip(JSON.stringify(value))}, expected ${what}`);
    }
    return config;
  };
  const config = read("tokenizer_config.json");
  const extra = extraOf(config["extra_special_tokens"], config["additional_special_tokens"]);
  const own = { ...config, extra_special_tokens: extra };
  if (config["added_tokens_decoder"] != null) return own;
  const { additional_special_tokens: additional, extra_special_tokens: more, ...named } = read("special_tokens_map.json");
  return { ...own, ...named, extra_special_tokens: [...extraOf(extra, additional), ...(tokensOf(more) ?? [])] };
}

export const optionalJson = (folder: string, name: string): Json =>
  existsSync(join(folder, name)) ? readJson(folder, name) : {};

/** A JSON object of the model's folder. Throws a RequestError, `model.tokenizer`. */
export function readJson(folder: string, name: string): Json {
  const path = join(folder, name);
  let value: unknown;
  try {
    value = parseJsonFile(path);
  } catch (error) {
    const { isMissing, what, hint } = jsonProblem(error);
    throw unusable(path, what, isMissing ? "the model's folder must hold its tokenizer" : hint);
  }
  if (!isObject(value)) throw unusable(path, "is no JSON object");
  return value;
}

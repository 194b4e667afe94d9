// The base model's tokenizer and chat template, from its folder, by Hugging Face's own packages.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { RequestError, textOf } from "../base/errors.ts";
import type { Message } from "./format.ts";
import { RowFault } from "./jsonl.ts";

export type Tokenizer = {
  /** Ids of a text; special tokens in it are recognised, none are added. */
  readonly encode: (text: string) => number[];
  readonly decode: (ids: readonly number[]) => string;
  readonly bos: number | null;
  readonly eos: number | null;
  /** Whether the model expects plain text to begin with `bos`. */
  readonly addBos: boolean;
  readonly hasChatTemplate: boolean;
  /** The text of a conversation; with `prompt` it ends where the assistant's next turn begins. */
  readonly renderChat: (messages: readonly Message[], prompt: boolean) => string;
  /** Texts of the special tokens, longest first. */
  readonly specials: readonly string[];
};

type Json = Record<string, unknown>;

/** Reads tokenizer.json and tokenizer_config.json. Throws a RequestError "model.tokenizer" that names the file. */
export function loadTokenizer(folder: string): Tokenizer {
  const json = readJson(folder, "tokenizer.json");
  const config = existsSync(join(folder, "tokenizer_config.json")) ? readJson(folder, "tokenizer_config.json") : {};
  mendDigits(json["pre_tokenizer"]);
  const hub = open(folder, json, config);
  const id = (name: string): number | null => {
    const text = tokenText(config[name]);
    return text === null ? null : (hub.token_to_id(text) ?? null);
  };
  const [bos, eos] = [id("bos_token"), id("eos_token")];
  const chat = chatTemplateOf(folder, config);
  const specialText = (name: string) => tokenText(config[name]) ?? undefined;
  return {
    encode: (text) => (text === "" ? [] : hub.encode(text, { add_special_tokens: false }).ids),
    decode: (ids) =>
      ids.length === 0 ? "" : hub.decode([...ids], { skip_special_tokens: false, clean_up_tokenization_spaces: false }),
    bos,
    eos,
    addBos: bos !== null && addsBos(hub, bos, config),
    hasChatTemplate: chat !== null,
    renderChat: (messages, prompt) => {
      if (!chat) throw new RowFault("is a conversation, but the base model has no chat template");
      try {
        const names = { bos_token: specialText("bos_token"), eos_token: specialText("eos_token") };
        return chat.render({ messages, add_generation_prompt: prompt, ...names });
      } catch (error) {
        throw new RowFault(`does not fit the model's chat template: ${textOf(error)}`);
      }
    },
    specials: [...hub.get_added_tokens_decoder().values()].map(({ content }) => content).sort((a, b) => b.length - a.length),
  };
}

function readJson(folder: string, name: string): Json {
  const path = join(folder, name);
  try {
    const value: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Json;
    throw new Error("it is no JSON object");
  } catch (error) {
    const missing = (error as { code?: string }).code === "ENOENT";
    const why = missing ? "no such file" : `cannot be read: ${textOf(error)}`;
    throw new RequestError(
      "model.tokenizer",
      `${path}: ${why}`,
      missing ? "the model's folder must hold its tokenizer" : undefined,
    );
  }
}

function open(folder: string, json: Json, config: Json): HubTokenizer {
  try {
    return new HubTokenizer(json, config);
  } catch (error) {
    throw new RequestError(
      "model.tokenizer",
      `${join(folder, "tokenizer.json")}: is of a kind that cannot be used: ${textOf(error)}`,
    );
  }
}

/**
 * @huggingface/tokenizers 0.2.0 takes only 0-9 for digits, the original all numerals (so "½" became another token): the same
 * split in other words is read right by both.
 */
function mendDigits(part: unknown): void {
  if (typeof part !== "object" || part === null) return;
  const node = part as Json;
  if (node["type"] === "Digits") {
    const each = node["individual_digits"] === true;
    Object.assign(node, {
      type: "Split",
      pattern: { Regex: each ? "\\p{N}" : "\\p{N}+" },
      behavior: "Isolated",
      invert: false,
    });
  }
  if (Array.isArray(node["pretokenizers"])) node["pretokenizers"].forEach(mendDigits);
}

/** A token in tokenizer_config.json is a text, or an object with one. */
function tokenText(token: unknown): string | null {
  if (typeof token === "string") return token;
  const content = (token as { content?: unknown } | null | undefined)?.content;
  return typeof content === "string" ? content : null;
}

function addsBos(hub: HubTokenizer, bos: number, config: Json): boolean {
  if (typeof config["add_bos_token"] === "boolean") return config["add_bos_token"];
  return hub.encode("a", { add_special_tokens: true }).ids[0] === bos;
}

/** chat_template.jinja, or the template in tokenizer_config.json: one text, or several by name ("default" counts). */
function chatTemplateOf(folder: string, config: Json): Template | null {
  const file = join(folder, "chat_template.jinja");
  const named = config["chat_template"];
  const several = Array.isArray(named)
    ? (named as { name?: string; template?: string }[]).find(({ name }) => name === "default")
    : null;
  const text = existsSync(file) ? readFileSync(file, "utf8") : (several?.template ?? named);
  if (typeof text !== "string") return null;
  try {
    return new Template(text);
  } catch (error) {
    throw new RequestError("model.tokenizer", `${folder}: the chat template cannot be read: ${textOf(error)}`);
  }
}

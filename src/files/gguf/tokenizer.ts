// A tokenizer.json next to a GGUF must be of the same model: its ids are those of the embedding's rows.

import { join } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { counted } from "../../base/units.ts";
import { type JsonObject, readJsonObject } from "../json.ts";
import { openGguf } from "./header.ts";

const TOKENS = "tokenizer.ggml.tokens";

/**
 * Compares the tokens of tokenizer.json in `folder` with those that a GGUF lists, if it does. Throws a RequestError,
 * `model.tokenizer`, for the first that differs.
 */
export function checkTokenizer(gguf: string, folder: string): void {
  const path = join(folder, "tokenizer.json");
  const listed = tokensOf(gguf);
  if (listed === null) return;
  for (const [token, id] of entriesOf(readJsonObject(path, "model.tokenizer"))) {
    if (listed[id] === token) continue;
    const there = id < listed.length ? JSON.stringify(listed[id]) : `only ${counted(listed.length, "token")}`;
    throw new RequestError(
      "model.tokenizer",
      `${path}: token ${id} is ${JSON.stringify(token)}, and ${gguf} has ${there}`,
      "put the tokenizer of the model that the GGUF was made from next to it",
    );
  }
}

function tokensOf(gguf: string): readonly unknown[] | null {
  using file = openGguf(gguf, [TOKENS]);
  const tokens = file.metadata.get(TOKENS);
  return Array.isArray(tokens) ? tokens : null;
}

type Added = { readonly content: string; readonly id: number; readonly special?: boolean };

/** The vocabulary and the special tokens. Others that were added are written down normalised by llama.cpp's converter. */
function entriesOf(json: JsonObject): readonly (readonly [string, number])[] {
  const { vocab } = (json["model"] ?? {}) as { readonly vocab?: unknown };
  const words: readonly (readonly [string, number])[] = Array.isArray(vocab)
    ? vocab.map((entry, id) => [`${(entry as readonly unknown[])[0]}`, id] as const)
    : Object.entries((vocab ?? {}) as Readonly<Record<string, number>>);
  const added = (json["added_tokens"] ?? []) as readonly Added[];
  const others = new Set(added.filter(({ special }) => !special).map(({ id }) => id));
  const specials = added.filter(({ special }) => special).map(({ content, id }) => [content, id] as const);
  return [...words.filter(([, id]) => !others.has(id)), ...specials];
}

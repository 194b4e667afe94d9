// The tokenizers of tests/golden/tokenizers, and what Python made with them (tests/golden/make_tokenizer.py).

import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Message } from "../../src/data/format.ts";
import { loadTokenizer, type Tokenizer } from "../../src/data/tokenizer.ts";

const GOLDEN = join(import.meta.dir, "../golden/tokenizers");

type Ids = readonly number[] | { readonly count: number; readonly sha256: string };
export type GoldenText = {
  /** A text, or a text that many times. */
  readonly text: string | readonly [string, number];
  readonly ids: Ids;
  /** What the ids spell, where that is not the text. */
  readonly decoded?: string;
};
export type GoldenChat = {
  readonly messages: readonly Message[];
  readonly text: string;
  readonly ids: readonly number[];
  readonly mask: readonly number[];
};
export type GoldenCase = {
  readonly base: string;
  /** Parts of tokenizer.json that are otherwise. */
  readonly changes: Readonly<Record<string, unknown>>;
  readonly addBos: boolean;
  readonly texts: readonly GoldenText[];
  /** By template file, then by name. */
  readonly chats: Readonly<Record<string, Readonly<Record<string, GoldenChat>>>>;
};

export const goldenKinds = ["smollm", "llama3", "qwen3", "llama2"] as const;
export const goldenFolder = (kind: (typeof goldenKinds)[number]): string => join(GOLDEN, kind);
export const readGolden = (name: string): GoldenCase => JSON.parse(readFileSync(join(GOLDEN, "cases", `${name}.json`), "utf8"));
export const goldenNames: readonly string[] = readdirSync(join(GOLDEN, "cases"))
  .map((file) => file.replace(/\.json$/, ""))
  .filter((name) => name !== "smollm2-real")
  .sort();

/** A golden tokenizer, with parts of its files changed; `template` is the file of its chat template, null for none. */
export function goldenTokenizer(
  base: string,
  changes: Readonly<Record<string, unknown>> = {},
  template: string | null = "chat_template.jinja",
  config: Readonly<Record<string, unknown>> = {},
): Tokenizer {
  return withFolder((folder) => {
    cpSync(join(GOLDEN, base), folder, { recursive: true });
    edit(join(folder, "tokenizer.json"), changes);
    edit(join(folder, "tokenizer_config.json"), config);
    const to = join(folder, "chat_template.jinja");
    if (template === null) rmSync(to);
    else cpSync(join(GOLDEN, base, template), to);
    return loadTokenizer(folder);
  });
}

function edit(path: string, changes: Readonly<Record<string, unknown>>): void {
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...changes }));
}

/** Calls with a new folder, which is gone afterwards. */
export function withFolder<T>(use: (folder: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "mlora-data-"));
  try {
    return use(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

// Spelling, by cspell's dictionaries: British English, terms of software, and the project's own words (scripts/words.txt).

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { spellCheckDocument } from "cspell-lib";

export type Misspelled = { readonly word: string; readonly at: number };

export const WORDS = join(import.meta.dir, "..", "words.txt");

/** Code, not English: names with capitals or digits in them, paths, flags, formulas, abbreviations; words with accents. */
const CODE =
  /\S*(?:[a-z][A-Z]|[_\d\\=<>{}|$@#~^]|\w[./+:*]\w|--\w)\S*|(?<=\s)-[\w-]+|\b[A-Z]{2,}s?\b|https?:\S+|['’]s\b|\p{L}*(?![a-zA-Z])\p{L}+/gu;

/** The words of a text that are in no dictionary, in order. */
export async function misspelled(prose: string): Promise<Misspelled[]> {
  const text = prose.replace(CODE, (found) => " ".repeat(found.length));
  const words = readFileSync(WORDS, "utf8").trimEnd().split("\n");
  const { issues, errors } = await spellCheckDocument(
    { uri: "file:///prose.txt", text, languageId: "plaintext", locale: "en-GB" },
    { generateSuggestions: false, noConfigSearch: true },
    { language: "en-GB", words, dictionaries: ["softwareTerms"], maxNumberOfProblems: 100_000, maxDuplicateProblems: 100_000 },
  );
  if (errors && errors.length > 0) throw new AggregateError(errors, "cspell could not read its dictionaries");
  return issues.map(({ text: word, offset: at }) => ({ word, at }));
}

/** Words of scripts/words.txt that no file of this checkout has. */
export function unusedWords(root: string): string[] {
  const flags = ["-hoiwF", "--untracked", "-f", WORDS, "--", ".", ":!scripts/words.txt", ":!package-lock.json"];
  const { stdout } = Bun.spawnSync(["git", "grep", ...flags], { cwd: root });
  const used = new Set(stdout.toString().toLowerCase().split("\n"));
  return readFileSync(WORDS, "utf8")
    .trimEnd()
    .split("\n")
    .filter((word) => !used.has(word.toLowerCase()));
}

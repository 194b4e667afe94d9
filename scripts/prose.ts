// Comments, messages and pages in plain words: the width of comments, words not to use, spelling. Run by scripts/test.
//
//   bun scripts/prose.ts [FOLDER or FILE...]     without one, all that are CHECKED
//
// A folder is listed once it has no breach, and from then on has none.

import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { proseOf } from "./prose/passages.ts";
import { misspelled, unusedWords } from "./prose/spelling.ts";
import { RULES } from "./prose/words.ts";

export type Source = { readonly path: string; readonly text: string };

const WIDTH = 128;

/** Folders, with all that is under them, and files, as git takes them; ":!" is without. */
const CHECKED: readonly string[] = [
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "README.md",
  "docs",
  ":!docs/keys.md", // generated
  "ffi",
  "kernels/triton",
  "scripts",
  "src",
  "tests",
];

/** Breaches of the sources, each as "path:line: what is wrong". One call for many: spelling takes a while to begin. */
export async function breaches(sources: readonly Source[]): Promise<string[]> {
  const read = sources.map((source) => ({ ...source, prose: proseOf(source.path, source.text) }));
  const starts: number[] = [];
  let all = "";
  for (const { prose } of read) {
    starts.push(all.length);
    all += `${prose.text}\n`;
  }
  const unknown = await misspelled(all);
  return read.flatMap(({ path, text, prose }, index) => {
    const from = starts[index]!;
    const wide = text.split("\n").flatMap((line, number) => {
      if (line.length <= WIDTH) return [];
      const at = text.split("\n", number).join("\n").length;
      const isComment = prose.comments.slice(at, at + line.length + 1).trim() !== "";
      return isComment ? [{ line: number + 1, what: `a comment line of ${line.length} columns, ${WIDTH} at most` }] : [];
    });
    const words = RULES.flatMap(({ pattern, instead }) =>
      [...prose.text.matchAll(pattern)].map(({ 0: found, index: at }) => ({
        line: lineAt(text, at),
        what: `'${found.replace(/\s+/g, " ")}': say ${instead}`,
      })),
    );
    const spelling = unknown
      .filter(({ at }) => at >= from && at < from + prose.text.length)
      .map(({ word, at }) => ({
        line: lineAt(text, at - from),
        what: `'${word}' is not in the dictionaries (scripts/words.txt has the project's words)`,
      }));
    return [...wide, ...words, ...spelling].sort((a, b) => a.line - b.line).map(({ line, what }) => `${path}:${line}: ${what}`);
  });
}

const lineAt = (text: string, index: number): number => text.slice(0, index).split("\n").length;

/** The files of this checkout with prose that lie under `folders`. */
async function sourcesIn(root: string, folders: readonly string[]): Promise<Source[]> {
  const { stdout } = Bun.spawnSync(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", ...folders], {
    cwd: root,
  });
  const paths = [...new Set(stdout.toString().split("\n"))];
  return paths
    .filter((path) => {
      const stat = statSync(join(root, path), { throwIfNoEntry: false });
      return stat?.isFile() && stat.size < 200_000;
    })
    .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));
}

if (import.meta.main) {
  const root = join(import.meta.dir, "..");
  const given = process.argv.slice(2);
  const sources = await sourcesIn(root, given.length > 0 ? given : CHECKED);
  const found = await breaches(sources);
  if (given.length === 0) found.push(...unusedWords(root).map((word) => `scripts/words.txt: '${word}' is not used`));
  for (const line of found) console.log(line);
  console.log(`prose: ${sources.length} files, ${found.length} breaches`);
  process.exit(found.length === 0 && sources.length > 0 ? 0 : 1);
}

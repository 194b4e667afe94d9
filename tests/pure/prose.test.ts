import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { proseOf } from "../../scripts/prose/passages.ts";
import { WORDS } from "../../scripts/prose/spelling.ts";
import { RULES } from "../../scripts/prose/words.ts";
import { breaches } from "../../scripts/prose.ts";

const check = (path: string, ...lines: readonly string[]): Promise<string[]> => breaches([{ path, text: lines.join("\n") }]);

describe("prose", () => {
  test("in plain words has no breach", async () => {
    expect(
      await check(
        "src/a.ts",
        "// The colour of a stage's line, by its state: see src/base/terminal.ts and `xqzv`.",
        'const qxzv = "nobody";', // a key, not a sentence
        "/** The optimiser's state, normalised, for the user who owns it. */",
        `fail(\`expected \${qxzv} rows of the file, found \${shall}\`);`,
      ),
    ).toEqual([]);
  });

  test.each([
    ["src/a.ts", "// It goes\n// on."],
    ["src/a.c", "/* Rows of somebody else. */"],
    ["src/a.ts", `const a = \`\${b}: this one wants \${c} rows\`;`],
    ["src/a.ts", `const a = \`\${b} wants \${c}\`;`],
    ["src/a.ts", 'const a = /["`]/, b = "rows are kept beside it";'],
    ["src/a.py", '"""Behind the last row."""'],
    ["scripts/a.sh", 'fail "it is none of the files"'],
    ["docs/a.md", "An adapter who trains."],
    ["tests/a.test.ts", 'test("what it is told", () => {});'],
  ])("words not to use: %s %s", async (path, text) => {
    const found = await check(path, text);
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(/:1: '.+': say .+/);
  });

  test.each([
    ["src/a.ts", "// A misspeled word."],
    ["src/a.py", "# A misspeled word."],
    ["src/a.c", "int a; // a misspeled word"],
    ["src/a.ts", `const a = { b: \`\${c} is a misspeled word\` };`],
    ["docs/a.md", "A misspeled word."],
  ])("spelling: %s %s", async (path, line) => {
    expect(await check(path, "", line)).toEqual([
      `${path}:2: 'misspeled' is not in the dictionaries (scripts/words.txt has the project's words)`,
    ]);
  });

  test("every breach of every file is found, with its place", async () => {
    const found = await breaches([
      { path: "src/a.ts", text: "// Misspeled once, misspeled twice.\n// misspeled" },
      { path: "src/b.ts", text: "\n// misspeled" },
    ]);
    expect(found.map((line) => line.split(": ")[0])).toEqual(["src/a.ts:1", "src/a.ts:1", "src/a.ts:2", "src/b.ts:2"]);
  });

  test("the width of comments, and not that of code", async () => {
    const wide = `// ${"a ".repeat(63)}b`;
    expect(await check("src/a.ts", wide.slice(0, 128), `const a = [${"1, ".repeat(50)}];`)).toEqual([]);
    expect(await check("src/a.ts", "", `${wide}.`)).toEqual(["src/a.ts:2: a comment line of 131 columns, 128 at most"]);
    expect(await check("docs/a.md", "a ".repeat(100))).toEqual([]);
  });

  test("code, addresses and data are no prose", () => {
    const blank = (path: string, text: string) => expect(proseOf(path, text).text.trim()).toBe("");
    blank("docs/a.md", "```sh\nwho shall\n```\n`who shall`");
    blank("tests/a.test.ts", 'const row = "somebody who shall go on";');
    blank("src/a.ts", `const a = b / c; const d = \`\${e(\`f\`)}\`; const g = 2 / 3;`);
    blank("src/a.json", '{"a": "somebody who shall go on"}');
  });

  test("the project's words are sorted, each once", async () => {
    const words = readFileSync(WORDS, "utf8").trimEnd().split("\n");
    expect(words).toEqual([...new Set(words)].sort((a, b) => a.localeCompare(b, "en")));
    expect(words.every((word) => /^\p{L}{4,}$/u.test(word))).toBe(true);
  });

  test("each rule says what to write", () => {
    for (const { instead } of RULES) expect(instead.length).toBeGreaterThan(5);
  });
});

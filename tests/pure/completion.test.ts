// Completion, man pages and help are made of one table, and real shells and real readers of man pages take them.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { COMMAND_NAMES } from "../../src/cli/commands.ts";
import { bashCompletion } from "../../src/cli/completion/bash.ts";
import { fishCompletion } from "../../src/cli/completion/fish.ts";
import { zshCompletion } from "../../src/cli/completion/zsh.ts";
import { GRAMMAR } from "../../src/cli/grammar.ts";
import { manPages } from "../../src/cli/man.ts";
import { ADAPTER_KEYS } from "../../src/recipe/schema.ts";
import { needs } from "../helpers/needs.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-completion-"));
const file = (name: string) => join(folder, name);
beforeAll(() => {
  for (const [name, text] of [
    ["c.bash", bashCompletion(GRAMMAR)],
    ["c.zsh", zshCompletion(GRAMMAR)],
    ["c.fish", fishCompletion(GRAMMAR)],
    ["one two.toml", ""],
    ["notes.md", ""],
  ] as const)
    writeFileSync(file(name), text);
  mkdirSync(file("out"));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function output(command: readonly string[]): string[] {
  const { stdout, stderr, success } = Bun.spawnSync([...command], { cwd: folder, timeout: 60_000 });
  expect([success, stderr.toString()]).toEqual([true, ""]);
  return stdout.toString().replaceAll("\r", "").split("\n").filter(Boolean);
}

/** What a line is completed to. */
type Complete = (line: string) => string[];

const inBash: Complete = (line) => {
  // As readline divides a line: "=" is a word of its own.
  const words = line.split(" ").flatMap((word) => word.split(/(=)/).filter((part, i) => part !== "" || i === 0));
  const quoted = words.map((word) => `'${word}'`).join(" ");
  const script = `source c.bash; COMP_WORDS=(${quoted}); COMP_CWORD=${words.length - 1}; _mlora; printf '%s\\n' "\${COMPREPLY[@]}"`;
  return output(["bash", "--norc", "-c", script]);
};
const inZsh: Complete = (line) => output(["zsh", "-f", join(import.meta.dir, "..", "helpers", "capture.zsh"), "c.zsh", line]);
const inFish: Complete = (line) =>
  output(["fish", "--no-config", "-c", `source c.fish; complete -C '${line}'`]).map((found) => found.split("\t")[0]!);

function completes(complete: Complete, withEquals: boolean): void {
  test("commands, by what they begin with", () => {
    expect(complete("mlora res").sort()).toEqual(["resume"]);
    expect(complete("mlora ").sort()).toEqual(expect.arrayContaining([...COMMAND_NAMES].sort()));
  });
  test("the flags of the command, and of no other", () => {
    expect(complete("mlora run --lis")).toEqual(["--listen"]);
    expect(complete("mlora plan --lis")).toEqual([]);
  });
  test("the values of a flag", () => {
    expect(complete("mlora run --device c").sort()).toEqual(["cpu", "cuda"]);
    if (withEquals) expect(complete("mlora run --device=cu")).toEqual(["cuda"]);
  });
  test("recipes and folders where a recipe is expected, also after a flag that takes a value", () => {
    for (const line of ["mlora run ", "mlora plan --seed 3 "]) {
      const found = complete(line).map((name) => name.replace(/\/$/, ""));
      expect(found).toContain("one two.toml");
      expect(found).toContain("out");
    }
  });
  test("folders alone for a flag that takes one", () => {
    expect(new Set(complete("mlora run --output ").map((name) => name.replace(/\/$/, "")))).toEqual(new Set(["out"]));
  });
  test("nothing for a number", () => expect(complete("mlora data x.toml --row ")).toEqual([]));
  test("the pages of man", () => expect(complete("mlora man rec")).toEqual(["recipe"]));
}

describe("bash", () => completes(inBash, true));
needs("zsh")("zsh", () => completes(inZsh, false));
needs("fish")("fish", () => completes(inFish, false));

test("every example is a command line that the table allows", () => {
  for (const { name, examples } of GRAMMAR) {
    expect(examples.length, name).toBeGreaterThan(0);
    for (const [example] of examples) {
      const [, called, rest] = /\bmlora ([a-z]+)([^|>)]*)/.exec(example)!;
      expect(called).toBe(name);
      const { flags, args } = GRAMMAR.find((of) => of.name === called)!;
      const words = rest!.match(/"[^"]*"|\S+/g) ?? [];
      let given = 0;
      for (let i = 0; i < words.length; i++) {
        if (!words[i]!.startsWith("--")) {
          given++;
          continue;
        }
        const flag = flags.find((of) => of.flag === words[i]);
        expect(flag, `${words[i]} of: ${example}`).toBeDefined();
        if (flag!.value) expect(words[++i], example).toBeDefined();
      }
      expect(given, example).toBeGreaterThanOrEqual(args.filter(({ isOptional }) => !isOptional).length);
      expect(given, example).toBeLessThanOrEqual(args.length);
    }
  }
});

test("the README names every command", () => {
  const readme = readFileSync(join(import.meta.dir, "..", "..", "README.md"), "utf8");
  const [, table] = readme.split("\n## Commands\n");
  for (const name of COMMAND_NAMES) expect(table!.split("\n## ")[0], name).toMatch(new RegExp(`\`(mlora )?${name}\\b`));
});

const pages = manPages();

test("a man page has every flag of its command, and mlora-recipe(5) every key", () => {
  const bare = (page: string) => pages.get(page)!.replaceAll("\\-", "-");
  for (const { name, flags } of GRAMMAR)
    for (const { flag } of flags) expect(bare(`man1/mlora-${name}.1`)).toContain(`\\fB${flag}\\fR`);
  for (const key of ADAPTER_KEYS) expect(bare("man5/mlora-recipe.5")).toContain(`\\fB${key}\\fR`);
});

/** Writes all pages; what a reader has to say of them. */
function complaints(command: readonly string[]): string {
  const said = [...pages].map(([name, text]) => {
    const path = file(name.split("/")[1]!);
    writeFileSync(path, text);
    const { stdout, stderr } = Bun.spawnSync([...command, path], {
      timeout: 60_000,
      env: { ...process.env, LC_ALL: "C.UTF-8" },
    });
    return `${stdout}${stderr}`;
  });
  return said.join("");
}
needs("mandoc")("mandoc", () => {
  test("finds nothing wrong but that pages have no date", () => {
    const found = complaints(["mandoc", "-Tlint", "-W", "warning"]).split("\n");
    expect(found.filter((line) => line !== "" && !line.includes("missing date"))).toEqual([]);
  });
});
needs("groff")("groff", () => {
  test("finds nothing wrong", () => {
    expect(complaints(["groff", "-man", "-z", "-ww", "-Tutf8"])).toBe("");
  });
});

// `mlora man`: man pages from the command table and the recipe's schema.

import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { ownPlace } from "../base/source-name.ts";
import { writeGenerated, writeStdout } from "../base/terminal.ts";
import { counted, shortPath } from "../base/units.ts";
import { COMMAND_NAMES, type CommandName } from "./commands.ts";
import { oneArgument } from "./flags.ts";
import { RECIPE_PAGE } from "./grammar.ts";
import { commandPage, mainPage, recipePage } from "./man/pages.ts";

/** Where a page lies below a folder of man pages: "man1/mlora-run.1". */
const MAIN = "man1/mlora.1";
const fileOf = (name: CommandName | typeof RECIPE_PAGE): string =>
  name === RECIPE_PAGE ? `man5/mlora-${name}.5` : `man1/mlora-${name}.1`;

/** All pages by their files. */
export function manPages(): ReadonlyMap<string, string> {
  const commands = COMMAND_NAMES.map((name) => [fileOf(name), commandPage(name)] as const);
  return new Map([[MAIN, mainPage()], ...commands, [fileOf(RECIPE_PAGE), recipePage()]]);
}

export function man(page: string | undefined, output: string | undefined): void {
  const name = page === undefined ? null : oneArgument("command", page, [...COMMAND_NAMES, RECIPE_PAGE]);
  const pages = manPages();
  if (output === undefined) {
    writeGenerated(pages.get(name === null ? MAIN : fileOf(name))!);
    return;
  }
  for (const [file, text] of pages) {
    const path = join(ownPlace("cli.flag", "output", output), file);
    mkdirSync(dirname(path), { recursive: true });
    writeFileAtomic(path, text);
  }
  writeStdout(`${counted(pages.size, "man page")} in ${shortPath(output)}\n`);
}

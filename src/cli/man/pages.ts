// The man pages themselves, in the macros of man(7), which mandoc and groff both know.

import { VARIABLES } from "../../base/env.ts";
import { VERSION } from "../../base/version.ts";
import { type JsonSchema, recipeSchema, valuesOf } from "../../recipe/json-schema.ts";
import type { CommandName, Example } from "../commands.ts";
import { type CommandGrammar, GRAMMAR, grammarOf, RECIPE_PAGE } from "../grammar.ts";

/** Text that means nothing to roff: no request at the beginning of a line, no escape, and hyphens that can be copied. */
export const roff = (text: string): string => text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replace(/^[.']/gm, "\\&$&");

const head = (title: string, section: number, name: string, purpose: string): string[] => [
  `.TH ${title.toUpperCase()} ${section} "" "mlora ${VERSION}" "mlora"`,
  ".SH NAME",
  `${roff(name)} \\- ${roff(purpose)}`,
];

const bold = (text: string): string => `\\fB${roff(text)}\\fR`;
const italic = (text: string): string => `\\fI${roff(text)}\\fR`;
const sentence = (text: string): string => (text.endsWith(".") ? text : `${text}.`);
const tagged = (tag: string, text: string): string[] => [".TP", tag, roff(text)];
const section = (title: string, lines: readonly string[]): string[] => (lines.length === 0 ? [] : [`.SH ${title}`, ...lines]);
const lowered = (text: string): string => text.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase());

const examples = (of: readonly Example[]): string[] =>
  of.flatMap(([command, purpose], i) => [
    ...(i > 0 ? [".PP"] : []),
    `${roff(purpose)}:`,
    ...[".PP", ".in +4n", ".nf", roff(command), ".fi", ".in"],
  ]);

const argument = ({ metavar, isOptional }: CommandGrammar["args"][number]): string =>
  isOptional ? `[${italic(metavar)}]` : italic(metavar);

const synopsis = ({ name, flags, args }: CommandGrammar): string =>
  [bold(`mlora ${name}`), ...args.map(argument), ...(flags.length > 1 ? [`[${italic("options")}]`] : [])].join(" ");

const EXITS: readonly (readonly [code: string, meaning: string])[] = [
  ["0", "Done."],
  ["1", "It failed, or was stopped before its end."],
  ["2", "The request was wrong, and nothing was begun."],
  ["70", "A bug in mlora."],
];
const exits = section(
  "EXIT STATUS",
  EXITS.flatMap(([code, meaning]) => tagged(bold(code), meaning)),
);

const see = (pages: readonly (readonly [name: string, of: number])[]): string[] =>
  section("SEE ALSO", [pages.map(([name, of]) => `${bold(name)}(${of})`).join(", ")]);

const page = (lines: readonly string[]): string => `${lines.join("\n")}\n`;

/** mlora(1) */
export function mainPage(): string {
  return page([
    ...head("mlora", 1, "mlora", "train many LoRA adapters at once on one shared language model"),
    ...section("SYNOPSIS", [`${bold("mlora")} ${italic("command")} [${italic("arguments")}] [${italic("options")}]`]),
    ...section("DESCRIPTION", [
      roff("Trains many LoRA adapters at once on one shared, frozen language model."),
      roff(
        "A recipe in TOML says all that shapes a run; an adapter comes out the same, bit for bit, whatever else is in the run.",
      ),
    ]),
    ...section(
      "COMMANDS",
      GRAMMAR.flatMap((command) => [".TP", synopsis(command), roff(sentence(command.purpose))]),
    ),
    ...section(
      "ENVIRONMENT",
      Object.entries(VARIABLES).flatMap(([name, meaning]) => tagged(bold(name), meaning)),
    ),
    ...exits,
    ...see([...GRAMMAR.map(({ name }) => [`mlora-${name}`, 1] as const), [`mlora-${RECIPE_PAGE}`, 5]]),
  ]);
}

/** mlora-run(1) */
export function commandPage(name: CommandName): string {
  const command = grammarOf(name);
  const { flags, purpose } = command;
  const takesRecipe = command.args.some(({ metavar }) => metavar === "recipe");
  return page([
    ...head(`mlora-${name}`, 1, `mlora-${name}`, lowered(purpose)),
    ...section("SYNOPSIS", [synopsis(command)]),
    ...section("DESCRIPTION", [roff(sentence(purpose))]),
    ...section(
      "OPTIONS",
      flags.flatMap(({ flag, metavar, meaning }) =>
        tagged(metavar === null ? bold(flag) : `${bold(flag)} ${italic(metavar)}`, sentence(meaning)),
      ),
    ),
    ...exits,
    ...section("EXAMPLES", examples(command.examples)),
    ...see([["mlora", 1], ...(takesRecipe ? [[`mlora-${RECIPE_PAGE}`, 5] as const] : [])]),
  ]);
}

function keys({ properties, required = [] }: JsonSchema): string[] {
  return Object.entries(properties!).flatMap(([key, of]) => {
    const standard = required.includes(key)
      ? "required"
      : of.default === undefined
        ? ""
        : `default ${JSON.stringify(of.default)}`;
    const values = valuesOf(of).replaceAll("`", "");
    return [".TP", bold(key), roff(sentence(of.description ?? "")), ".br", roff(`${values}${standard && `; ${standard}`}`)];
  });
}

/** mlora-recipe(5) */
export function recipePage(): string {
  const { model, run, adapter } = recipeSchema().properties as Readonly<Record<"model" | "run" | "adapter", JsonSchema>>;
  return page([
    ...head(`mlora-${RECIPE_PAGE}`, 5, `mlora-${RECIPE_PAGE}`, "all that shapes a run of mlora, in TOML"),
    ...section("DESCRIPTION", [
      roff("Paths are relative to the recipe. An unknown key is an error."),
      roff("The table [defaults] takes the keys of [[adapter]] but name and sweep, for the adapters that do not have them."),
    ]),
    ...section("[MODEL]", keys(model)),
    ...section("[RUN]", keys(run)),
    ...section("[[ADAPTER]]", keys(adapter.items as JsonSchema)),
    ...see([
      ["mlora", 1],
      ["mlora-run", 1],
      ["mlora-init", 1],
      ["mlora-schema", 1],
    ]),
  ]);
}

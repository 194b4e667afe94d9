// The command table as completion, man pages and the site need it: each flag and argument with what may stand there.

import { PRECISIONS } from "../base/precision.ts";
import { RECOMPUTATIONS } from "../base/recomputation.ts";
import { SHAPE_NAMES } from "../session/benchmark/benchmark.ts";
import { BENCHMARK_METHODS, BENCHMARK_SHARINGS, BENCHMARK_TARGETS } from "../session/benchmark/work.ts";
import { GGUF_CONTENTS } from "../session/publishing/export-gguf.ts";
import { EXPORT_DTYPES } from "../session/publishing/export-model.ts";
import { COMMAND_NAMES, type CommandName, type Example, factsOf, REPEATED } from "./commands.ts";
import { DEVICES, LINKS } from "./flags.ts";

/** What a shell may put there. */
export type Value =
  | { readonly kind: "file"; readonly suffix: string }
  | { readonly kind: "folder" | "run" | "other" }
  | { readonly kind: "words"; readonly words: readonly string[] };

export type FlagGrammar = {
  /** "--device" */
  readonly flag: string;
  /** "device"; null where it takes no value, or none is needed. */
  readonly metavar: string | null;
  readonly value: Value | null;
  readonly meaning: string;
  readonly isRepeated: boolean;
};
export type CommandGrammar = {
  readonly name: CommandName;
  readonly purpose: string;
  readonly examples: readonly Example[];
  readonly flags: readonly FlagGrammar[];
  readonly args: readonly { readonly metavar: string; readonly isOptional: boolean; readonly value: Value }[];
};

export const SHELLS = ["bash", "zsh", "fish"] as const;
/** The man page of a recipe's keys. */
export const RECIPE_PAGE = "recipe";

const words = (of: readonly string[]): Value => ({ kind: "words", words: of });
const file = (suffix: string): Value => ({ kind: "file", suffix });

/** By metavar; all others are texts and numbers of any kind. */
const VALUES: Readonly<Record<string, Value>> = {
  recipe: file(".toml"),
  file: file(""),
  base: file(""),
  model: file(""),
  data: file(""),
  folder: { kind: "folder" },
  run: { kind: "run" },
  device: words(DEVICES),
  link: words(LINKS),
  precision: words(PRECISIONS),
  recomputation: words(["auto", ...RECOMPUTATIONS]),
  method: words(BENCHMARK_METHODS),
  targets: words(BENCHMARK_TARGETS),
  sharing: words(BENCHMARK_SHARINGS),
  shape: words(SHAPE_NAMES),
  dtype: words(EXPORT_DTYPES),
  type: words(GGUF_CONTENTS),
  shell: words(SHELLS),
};

function argumentValue(command: CommandName, metavar: string): Value {
  if (metavar === "command") return words(command === "man" ? [...COMMAND_NAMES, RECIPE_PAGE] : COMMAND_NAMES);
  if (metavar === "adapter" && command === "export") return { kind: "folder" };
  return VALUES[metavar] ?? { kind: "other" };
}

/** Every command takes it. */
const HELP: FlagGrammar = {
  flag: "--help",
  metavar: null,
  value: null,
  meaning: "Say what the command does and takes",
  isRepeated: false,
};

export function grammarOf(name: CommandName): CommandGrammar {
  const { usage, purpose, flags = [], examples } = factsOf(name);
  return {
    name,
    purpose,
    examples,
    flags: [
      ...flags.map(([written, meaning]): FlagGrammar => {
        const [, flag, metavar = null] = /^(--[a-z-]+)(?: <([^>]+)>| \[[^\]]+\])?$/.exec(written)!;
        const value = metavar === null ? null : (VALUES[metavar] ?? { kind: "other" });
        return { flag: flag!, metavar, value, meaning, isRepeated: REPEATED[name] === flag!.slice(2) };
      }),
      HELP,
    ],
    args: [...usage.matchAll(/([<[])([^>\]]+)[>\]]/g)].map(([, bracket, metavar]) => ({
      metavar: metavar!,
      isOptional: bracket === "[",
      value: argumentValue(name, metavar!),
    })),
  };
}

export const GRAMMAR: readonly CommandGrammar[] = COMMAND_NAMES.map(grammarOf);

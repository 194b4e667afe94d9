// Completion for zsh: a function for the completion system, in the words of _arguments.

import type { CommandGrammar, FlagGrammar, Value } from "../grammar.ts";
import { RUNS } from "./runs.ts";

const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
/** In a description, where a colon or a bracket would end it. */
const plain = (text: string): string => text.replace(/[\\:[\]]/g, "\\$&");

function action(value: Value): string {
  switch (value.kind) {
    case "file":
      return value.suffix === "" ? "_files" : `_files -g "*${value.suffix}"`;
    case "folder":
      return "_files -/";
    case "run":
      return "_mlora_runs";
    case "words":
      return `(${value.words.join(" ")})`;
    case "other":
      return " ";
  }
}

const flagSpec = ({ flag, metavar, value, meaning, isRepeated }: FlagGrammar): string =>
  quoted(
    `${isRepeated ? "*" : ""}${flag}${value ? "=" : ""}[${plain(meaning)}]${value ? `:${plain(metavar!)}:${action(value)}` : ""}`,
  );

const argumentSpec = ({ metavar, isOptional, value }: CommandGrammar["args"][number]): string =>
  quoted(`${isOptional ? ":" : ""}:${plain(metavar)}:${action(value)}`);

export function zshCompletion(commands: readonly CommandGrammar[]): string {
  const cases = commands.map(({ name, flags, args }) => {
    const specs = [...flags.map(flagSpec), ...args.map(argumentSpec)];
    return `    ${name})\n      _arguments -s -S \\\n        ${specs.join(" \\\n        ")}\n      ;;`;
  });
  return `#compdef mlora
# zsh completion of mlora. Written by: mlora completion zsh

_mlora_runs() {
  local -a runs
  runs=(\${(f)"$(${RUNS})"})
  _alternative 'runs:run:($runs)' 'folders:output folder:_files -/'
}

_mlora() {
  local curcontext=$curcontext state line
  local -a commands
  typeset -A opt_args
  _arguments -C \\
    '(- *)'{-v,--version}'[Print the version]' \\
    '(- *)'{-h,--help}'[List the commands]' \\
    '1:command:->command' \\
    '*::argument:->arguments' && return
  case $state in
  command)
    commands=(
${commands.map(({ name, purpose }) => `      ${quoted(`${name}:${plain(purpose)}`)}`).join("\n")}
    )
    _describe -t commands command commands
    ;;
  arguments)
    case $words[1] in
${cases.join("\n")}
    esac
    ;;
  esac
}

if [[ $funcstack[1] == _mlora ]]; then _mlora "$@"; else compdef _mlora mlora; fi
`;
}

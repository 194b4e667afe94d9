// Completion for bash 4 and later: one function, in which the table's flags and arguments are cases.

import type { CommandGrammar, Value } from "../grammar.ts";
import { RUNS } from "./runs.ts";

/** Whole words, so that a file with spaces is one. */
function reply(value: Value): string {
  switch (value.kind) {
    case "file":
      return value.suffix === "" ? "_mlora_files" : `_mlora_files '*${value.suffix}'`;
    case "folder":
      return "_mlora_folders";
    case "run":
      return '_mlora_words "$(_mlora_runs)"; _mlora_folders';
    case "words":
      return `_mlora_words '${value.words.join(" ")}'`;
    case "other":
      return ":";
  }
}

/** Cases that do the same are one. */
function cases(of: readonly (readonly [pattern: string, does: string])[]): string[] {
  const alike = Map.groupBy(of, ([, does]) => does);
  return [...alike].map(([does, patterns]) => `    ${patterns.map(([pattern]) => pattern).join(" | ")}) ${does} ;;`);
}

export function bashCompletion(commands: readonly CommandGrammar[]): string {
  const valued = commands.flatMap(({ name, flags }) =>
    flags.flatMap(({ flag, value }) => (value === null ? [] : [[`"${name} ${flag}"`, reply(value)] as const])),
  );
  const args = commands.flatMap(({ name, args: of }) => of.map(({ value }, i) => [`"${name} ${i}"`, reply(value)] as const));
  const flags = commands.map(({ name, flags: of }) => {
    return [name, `_mlora_words '${of.map(({ flag }) => flag).join(" ")}'`] as const;
  });
  return `# bash completion of mlora. Written by: mlora completion bash

_mlora_words() { mapfile -t -O "\${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$1" -- "$cur"); }
_mlora_folders() {
  compopt -o filenames 2>/dev/null
  mapfile -t -O "\${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$cur")
}
_mlora_files() {
  _mlora_folders
  local found
  while IFS= read -r found; do
    [[ -d $found || ( $1 && $found != $1 ) ]] || COMPREPLY+=("$found")
  done < <(compgen -f -- "$cur")
}
_mlora_runs() { ${RUNS}; }

_mlora() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev='' command=\${COMP_WORDS[1]} word i place=0 value=''
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    _mlora_words '${commands.map(({ name }) => name).join(" ")} --help --version'
    return
  fi
  # What flags take is no argument; bash has made words of --flag=value's three parts.
  for (( i = 2; i < COMP_CWORD; i++ )); do
    word=\${COMP_WORDS[i]}
    if [[ $word == '=' ]]; then value=$prev
    elif [[ $value ]]; then value='' prev=''
    elif [[ $word == --* ]]; then
      prev=$word
      _mlora_takes "$command $word" && value=$word
    else (( place++ )); fi
  done
  [[ $cur == '=' ]] && cur=''
  if [[ $value ]]; then
    case "$command $value" in
${cases(valued).join("\n")}
    esac
  elif [[ $cur == -* ]]; then
    case $command in
${cases(flags).join("\n")}
    esac
  else
    case "$command $place" in
${cases(args).join("\n")}
    esac
  fi
}
_mlora_takes() {
  case $1 in
    ${valued.map(([pattern]) => pattern).join(" | ")}) return 0 ;;
  esac
  return 1
}
complete -F _mlora mlora
`;
}

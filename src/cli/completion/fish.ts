// Completion for fish: a line for each command, flag and argument.

import type { CommandGrammar, Value } from "../grammar.ts";
import { RUNS } from "./runs.ts";

const quoted = (text: string): string => `'${text.replace(/[\\']/g, "\\$&")}'`;

/** What to offer, as options of complete. */
function offer(value: Value): string {
  switch (value.kind) {
    case "file":
      return value.suffix === "" ? "-F" : `-a '(__fish_complete_suffix ${value.suffix})'`;
    case "folder":
      return "-a '(__fish_complete_directories)'";
    case "run":
      return "-a '(__mlora_runs) (__fish_complete_directories)'";
    case "words":
      return `-a ${quoted(value.words.join(" "))}`;
    case "other":
      return "";
  }
}

export function fishCompletion(commands: readonly CommandGrammar[]): string {
  const lines = commands.flatMap(({ name, purpose, flags, args }) => {
    const on = (condition: string) => `complete -c mlora -n ${quoted(condition)}`;
    const takes = flags.flatMap(({ flag, value }) => (value ? [flag] : [])).join(" ");
    return [
      `${on("__mlora_is_first")} -a ${name} -d ${quoted(purpose)}`,
      ...flags.map(({ flag, value, meaning }) => {
        const of = value ? ` ${value.kind === "file" ? "-r" : "-x"} ${offer(value)}`.trimEnd() : "";
        return `${on(`__mlora_is ${name}`)} -l ${flag.slice(2)}${of} -d ${quoted(meaning)}`;
      }),
      ...args.flatMap(({ value }, i) =>
        value.kind === "other" ? [] : [`${on(`__mlora_at ${name} ${i} ${takes}`.trimEnd())} ${offer(value)}`],
      ),
    ];
  });
  return `# fish completion of mlora. Written by: mlora completion fish

function __mlora_is_first
    test (count (commandline -opc)) -eq 1
end
function __mlora_is
    set -l words (commandline -opc)
    test (count $words) -ge 2; and test $words[2] = $argv[1]
end
# Whether the cursor is at this argument of a command; those that follow are its flags that take a value.
function __mlora_at
    __mlora_is $argv[1]; or return 1
    set -l place 0
    set -l takes 0
    for word in (commandline -opc)[3..-1]
        if test $takes = 1
            set takes 0
        else if contains -- $word $argv[3..-1]
            set takes 1
        else if not string match -q -- '--*' $word
            set place (math $place + 1)
        end
    end
    test $takes = 0; and test $place = $argv[2]
end
function __mlora_runs
    ${RUNS}
end

complete -c mlora -f
complete -c mlora -n __mlora_is_first -l version -s v -d 'Print the version'
complete -c mlora -n __mlora_is_first -l help -s h -d 'List the commands'
${lines.join("\n")}
`;
}

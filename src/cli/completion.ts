// `mlora completion SHELL`: what makes a shell complete mlora's commands, flags, files and runs.

import { writeStdout } from "../base/terminal.ts";
import { bashCompletion } from "./completion/bash.ts";
import { fishCompletion } from "./completion/fish.ts";
import { zshCompletion } from "./completion/zsh.ts";
import { oneArgument } from "./flags.ts";
import { GRAMMAR, SHELLS } from "./grammar.ts";

const MADE = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion };

export function completion(shell: string): void {
  writeStdout(MADE[oneArgument("shell", shell, SHELLS)](GRAMMAR));
}

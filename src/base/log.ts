// One verbosity level: 0 quiet, 1 stages and steps, 2 each launch with its time, 3 arguments and plans (MLORA_DEBUG).
// Set once by main.ts; nothing else reads the environment for it.

import { writeStderr } from "./terminal.ts";

let level = 0;
export const setLogLevel = (to: number): void => {
  level = to;
};

/** `line` is a function, so that a quiet run builds no strings. */
export const log = (at: number, line: () => string): void => {
  if (level >= at) writeStderr(`${line()}\n`);
};

// One verbosity level (MLORA_DEBUG): 0 notices and warnings, 1 also stages, memory and servers, 2 also each request to a stage.
// Set once by main.ts; nothing else reads the environment for it.

import { writeStderr } from "./terminal.ts";

let level = 0;
export const setLogLevel = (to: number): void => {
  level = to;
};

export const logs = (at: number): boolean => level >= at;

/** `line` is a function, so that a quiet run builds no strings. */
export const log = (at: number, line: () => string): void => {
  if (level >= at) writeStderr(`${line()}\n`);
};

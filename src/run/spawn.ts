// The one place that starts other programs.

import { RunError, textOf } from "../base/errors.ts";

export type Captured = { readonly code: number; readonly stdout: string; readonly stderr: string };

/**
 * Runs a program to its end, without input, and returns what it wrote. One that ran past its time is killed, and its code is
 * 137. Throws a RunError, `spawn.start`, where it cannot be started.
 */
export async function capture(command: readonly [string, ...string[]], timeoutMs: number): Promise<Captured> {
  const child = start(command, timeoutMs);
  const [stdout, stderr, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { code, stdout, stderr };
}

function start([program, ...rest]: readonly [string, ...string[]], timeout: number) {
  try {
    return Bun.spawn([program, ...rest], { stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout, killSignal: "SIGKILL" });
  } catch (error) {
    throw new RunError("spawn.start", `cannot start ${program}: ${textOf(error)}`, undefined, { cause: error });
  }
}

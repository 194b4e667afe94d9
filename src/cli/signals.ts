// Signals that ask a command to end.

import { ignoresHangup } from "../base/machine.ts";

/** Signals within this time are one: a terminal or a service manager signals a whole group, whose scripts pass theirs on. */
const SAME_MS = 1_000;

/**
 * Calls `stop` at the first SIGINT, SIGTERM or SIGHUP (not under nohup); a later one ends the process by its default action.
 */
export function onInterrupt(stop: () => void): Disposable {
  const signals = ["SIGINT", "SIGTERM", ...(ignoresHangup() ? [] : (["SIGHUP"] as const))] as const;
  const release = () => {
    for (const signal of signals) process.off(signal, handle);
  };
  let released: Timer | null = null;
  const handle = () => {
    if (released) return;
    released = setTimeout(release, SAME_MS).unref();
    stop();
  };
  for (const signal of signals) process.on(signal, handle);
  return { [Symbol.dispose]: release };
}

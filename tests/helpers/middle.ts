// What is done to a run in its middle, on a machine however fast.

import { until } from "./bus.ts";
import type { Ended, Running } from "./program.ts";

const MOST = 1024;
const WAIT_MS = 60_000;

/**
 * Calls `attempt` with a factor for a run's length, a larger one each time, until it returns something; null says that the run
 * had ended before what was to happen in its middle.
 */
export async function inTheMiddle<T>(attempt: (factor: number) => Promise<T | null>): Promise<T> {
  for (let factor = 1; factor <= MOST; factor *= 4) {
    const found = await attempt(factor);
    if (found !== null) return found;
  }
  throw new Error(`a run of ${MOST} times the length has ended before its middle was seen`);
}

/** Resolves to true when it is so; to false when the run has ended before. */
export async function beforeItsEnd(running: Running, what: string, isSo: () => boolean): Promise<boolean> {
  let isOver = false;
  void running.ended.then(() => {
    isOver = true;
  });
  await until(what, WAIT_MS, () => isSo() || isOver);
  return !isOver;
}

/** Sends a run a signal once `isThere`; starts longer ones until one has not ended before. */
export const signalled = <T extends { readonly running: Running }>(
  signal: NodeJS.Signals,
  start: (factor: number) => T,
  isThere: (of: T) => boolean,
): Promise<T & { readonly ended: Ended }> =>
  inTheMiddle(async (factor) => {
    const of = start(factor);
    await beforeItsEnd(of.running, "the middle", () => isThere(of));
    of.running.kill(signal);
    const ended = await of.running.ended;
    return ended.code === 0 ? null : { ...of, ended };
  });

// The only clock. Durations are differences of `now()`; `wallTime()` is for times that people read or files hold.

/** Milliseconds since the process began: never goes back, whatever is done to the system's clock. */
export const now = (): number => performance.now();

/** Milliseconds of processor time that all threads of the process have taken. */
export function processorTime(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** The longest wait of a timer in ms, 24 days: one that is set for longer ends at once. */
export const MOST_TIMER_MS = 2 ** 31 - 1;

/** Resolves after at least `ms` milliseconds. */
export const sleep = (ms: number): Promise<void> => Bun.sleep(ms);

/** Milliseconds since 1970, UTC. */
export const wallTime = (): number => Date.now();

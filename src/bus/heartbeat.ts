// Heartbeats, from the main thread's side: starts the thread that sends and receives them (heartbeat-worker.ts), which reports
// silent sessions.

import { Worker } from "node:worker_threads";
import { RunError } from "../base/errors.ts";
import type { FromHeartbeat, ToHeartbeat } from "./heartbeat-worker.ts";
import type { SealedConnection } from "./seal.ts";

export type Heartbeat = AsyncDisposable & {
  /** From now on it is expected to beat. */
  readonly watch: (session: string) => void;
  readonly forget: (session: string) => void;
};

/** In the compiled binary a thread's code is an entry point of its own (scripts/build.ts), by its path in the checkout. */
const CODE = Bun.isStandaloneExecutable ? "./src/bus/heartbeat-worker.ts" : new URL("./heartbeat-worker.ts", import.meta.url);

/**
 * Beats for `session`, on a connection of its own to where `connection` goes. `silent` is called once for each watched session
 * that was not heard of for too long, and with null for the server. Throws as `connect` does.
 */
export async function startHeartbeat(
  { address, key }: Pick<SealedConnection, "address" | "key">,
  run: string,
  session: string,
  silent: (session: string | null) => void,
): Promise<Heartbeat> {
  const thread = new Worker(CODE);
  const post = (message: ToHeartbeat) => thread.postMessage(message);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  thread.on("message", (message: FromHeartbeat) => {
    if (message.type === "beating") resolve();
    else if (message.type === "silent") silent(message.session);
    else reject(new RunError(message.code, message.message, message.hint));
  });
  let beating = false;
  thread.on("error", (error) => {
    if (beating) throw error; // our bug: a process without heartbeats would be taken for dead
    reject(error);
  });
  post({ type: "start", address, key, run, session });
  try {
    await promise;
    beating = true;
  } catch (error) {
    await thread.terminate();
    throw error;
  }
  return {
    watch: (who) => post({ type: "watch", session: who }),
    forget: (who) => post({ type: "forget", session: who }),
    [Symbol.asyncDispose]: async () => void (await thread.terminate()),
  };
}

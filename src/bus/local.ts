// A bus within one process: one stage needs no server. Requests to a stage wait for each other, as they would on a wire.

import { type Bus, Later, type StageHandlers } from "./bus.ts";
import { Gate } from "./gate.ts";
import type { RequestOf, RequestType, StageReply } from "./messages.ts";

/**
 * Disposing the bus refuses the requests whose turn has not come (RunError, `bus.closed`), calls `interrupt`, waits for what
 * the stages compute, and then calls `close`, which may release memory.
 */
export function localBus(
  stages: readonly StageHandlers[],
  close: () => Promise<void>,
  interrupt: () => void = () => undefined,
): Bus {
  const gate = new Gate();
  const guarded = stages.map((handlers) => gate.guard(handlers));
  const tails: Promise<unknown>[] = stages.map(() => Promise.resolve());
  let closing: Promise<void> | null = null;
  const finish = async (): Promise<void> => {
    const idle = gate.close();
    interrupt(); // a stage that waits for its neighbour would wait for ever
    await idle;
    await close();
  };
  return {
    stages: stages.length,
    request<T extends RequestType>(stage: number, request: RequestOf<T>) {
      const handle = guarded[stage]![request.type] as (r: typeof request) => Promise<StageReply[T] | Later<StageReply[T]>>;
      const handled = tails[stage]!.then(() => handle(request));
      tails[stage] = handled.catch(() => undefined); // the caller gets the error; the next request may still be served
      return handled.then((found) => (found instanceof Later ? found.reply : found));
    },
    [Symbol.asyncDispose]() {
      closing ??= finish();
      return closing;
    },
  };
}

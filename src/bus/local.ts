// A bus within one process: one stage needs no server. Requests to a stage wait for each other, as they would on a wire.

import { type Bus, Later, type StageHandlers } from "./bus.ts";
import type { StageReply, StageRequest } from "./messages.ts";

export function localBus(stages: readonly StageHandlers[], close: () => Promise<void>): Bus {
  const tails: Promise<unknown>[] = stages.map(() => Promise.resolve());
  return {
    stages: stages.length,
    request<T extends StageRequest["type"]>(stage: number, request: Extract<StageRequest, { readonly type: T }>) {
      const handle = stages[stage]![request.type] as (r: typeof request) => Promise<StageReply[T] | Later<StageReply[T]>>;
      const handled = tails[stage]!.then(() => handle(request));
      tails[stage] = handled.catch(() => undefined); // the caller hears of it; the next request may still be served
      return handled.then((found) => (found instanceof Later ? found.reply : found));
    },
    [Symbol.asyncDispose]: close,
  };
}

// A bus that says what it carries, for those who look for what takes so long.

import { now } from "../base/clock.ts";
import { log, logs } from "../base/log.ts";
import type { Bus } from "./bus.ts";

/**
 * At log level 2: a line for each answer of a stage, with the time since it was asked, in which earlier requests were done,
 * too.
 */
export function logged(bus: Bus): Bus {
  if (!logs(2)) return bus;
  return {
    stages: bus.stages,
    async request(stage, request) {
      const asked = now();
      try {
        return await bus.request(stage, request);
      } finally {
        log(2, () => `stage ${stage}: ${request.type}, answered after ${(now() - asked).toFixed(1)} ms`);
      }
    },
    [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
  };
}

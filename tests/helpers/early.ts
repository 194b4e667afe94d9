// Runs that begin before all their rows are read.

import { range } from "../../src/base/shape.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";

/** Lines of a file that a run does not wait for, where there are 5,000 or more of them; one of ten before a blank line. */
export const manyRows = (count: number, more: (i: number) => object = () => ({})): string[] =>
  range(count).map((i) => {
    const row = {
      prompt: `What is ${i * i} + 1?`,
      completion: `${i * i + 1} ${"x".repeat(i % 50)}`,
      note: "-".repeat(150),
      ...more(i),
    };
    return `${JSON.stringify(row)}\n${i % 10 === 0 ? "\n" : ""}`;
  });

/** What a run says that has begun so. */
export const EARLY = "training begins while";

export const isEarly = (events: readonly SessionEvent[]): boolean =>
  events.some((event) => event.type === "accepted" && event.notices.some((text) => text.startsWith(EARLY)));

// What a trace says of bubbles: by spans whose idle time is known.

import { expect, test } from "bun:test";
import type { StageSpan } from "../../src/bus/messages.ts";
import { measuredBubble, type StageTrace, steadyBubble } from "../../src/session/tracing/trace.ts";

const span = (kind: StageSpan["kind"], start: number, end: number): StageSpan => ({ kind, pass: 0, adapters: [0], start, end });
const trace = (...spans: StageSpan[]): StageTrace => ({ spans, kernels: [] });

test("the bubble counts what is neither computed nor evaluated, from the first training pass to the last; transfers are no work", () => {
  const first = trace(span("forward", 0, 4), span("send", 4, 9), span("backward", 10, 16));
  const second = trace(
    span("receive", 0, 4),
    span("forward", 4, 6),
    span("backward", 6, 10),
    span("evaluate", 12, 15),
    span("step", 15, 15.5),
  );
  expect(measuredBubble([first, second])).toBeCloseTo(1 - (4 + 6 + 2 + 4 + 3 + 0.5) / (2 * 16));
  expect(measuredBubble([trace(span("evaluate", 0, 3)), trace()])).toBeNull();
});

test("the steady bubble leaves out how the pipeline fills and drains, and cuts what crosses its ends", () => {
  const first = trace(span("forward", 0, 4), span("forward", 4, 8), span("backward", 9, 13), span("backward", 13, 17));
  const second = trace(span("forward", 4, 6), span("backward", 6, 9), span("forward", 9, 11), span("backward", 12, 15));
  // from 4, where the second begins, to 15, where it ends
  expect(steadyBubble([first, second])).toBeCloseTo(1 - (4 + 4 + 2 + 2 + 3 + 2 + 3) / (2 * 11));
  expect(steadyBubble([first, trace()])).toBeNull();
  expect(steadyBubble([trace(span("forward", 0, 1)), trace(span("forward", 2, 3))])).toBeNull();
});

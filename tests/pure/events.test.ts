// A session's events as a stream: all readers get all events in order, in their own time, and a slow one learns what it
// missed.

import { expect, test } from "bun:test";
import * as v from "valibot";
import { EventStream } from "../../src/session/events/event-stream.ts";
import {
  type AdapterResult,
  endedEvent,
  resultOf,
  type SessionEvent,
  sessionEventSchema,
} from "../../src/session/events/events.ts";

const notice = (i: number): SessionEvent => ({ type: "notice", adapter: null, index: null, text: `${i}` });
const notices = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => notice(from + i));

async function all(events: AsyncIterable<SessionEvent>): Promise<SessionEvent[]> {
  const found: SessionEvent[] = [];
  for await (const event of events) found.push(event);
  return found;
}

test("readers get all events from when they asked, in order, whether they wait for them or come later", async () => {
  const stream = new EventStream();
  const early = all(stream.events());
  const waiting = stream.events();
  stream.emit(notice(0));
  const late = stream.events();
  for (const event of notices(1, 10)) {
    stream.emit(event);
    await Promise.resolve();
  }
  stream.close();
  expect(await early).toEqual(notices(0, 10));
  expect(await all(waiting)).toEqual(notices(0, 10));
  expect(await all(late)).toEqual(notices(1, 10));
  expect(await all(stream.events())).toEqual([]);
});

test("a reader that is too slow misses the oldest events and gets their number, and nothing else is held up or kept", async () => {
  const stream = new EventStream();
  const slow = stream.events();
  const quick = stream.events();
  const first = slow.next();
  const total = 10_000;
  let read = 0;
  for (const event of notices(0, total)) {
    stream.emit(event);
    expect((await quick.next()).value).toEqual(notice(read++));
  }
  stream.close();
  expect((await first).value).toEqual(notice(0));
  const [missed, ...rest] = await all(slow);
  expect(missed?.type).toBe("missed");
  const { count } = missed as { readonly count: number };
  expect(count).toBeGreaterThan(0);
  expect(rest).toEqual(notices(1 + count, total));
});

test("a slow reader gets each gap in its place", async () => {
  const stream = new EventStream();
  const reader = stream.events();
  for (const event of notices(0, 5000)) stream.emit(event);
  const gap = await reader.next();
  const next = await reader.next();
  for (const event of notices(5000, 10_000)) stream.emit(event);
  stream.close();
  const [second, ...rest] = await all(reader);
  const [one, two] = [gap.value, second].map((event) => (event as { readonly count: number }).count);
  expect([gap.value!.type, second!.type]).toEqual(["missed", "missed"]);
  expect(next.value).toEqual(notice(one!));
  expect(one! + 1 + two! + rest.length).toBe(10_000);
  expect(rest).toEqual(notices(10_000 - rest.length, 10_000));
});

test("listeners are called at once and in order, and what one throws reaches the caller of emit", () => {
  const heard: string[] = [];
  const stream = new EventStream([
    () => void heard.push("first"),
    () => {
      heard.push("second");
      throw new Error("no room");
    },
  ]);
  expect(() => stream.emit(notice(0))).toThrow("no room");
  expect(heard).toEqual(["first", "second"]);
});

test("a result with losses that are not finite is plain data in its event, and the same result again when read", () => {
  const evaluation = { loss: Number.NaN, exact: 0, rows: 2 };
  const result: AdapterResult = {
    ...{ name: "a", status: "dropped", message: "others were better", steps: 3, tokens: 9, seconds: 0.5 },
    ...{ before: evaluation, after: null, firstLoss: 2, lastLoss: 1, folder: null },
    made: { settings: "{}", data: "0", model: "1" },
  };
  const event = endedEvent({ name: "a", index: 4 }, result);
  const read = v.parse(sessionEventSchema, JSON.parse(JSON.stringify(event)));
  expect(read).toStrictEqual(event);
  expect(event.result.before).toEqual({ loss: null, exact: 0, rows: 2 });
  expect(resultOf(event)).toEqual(result);
});

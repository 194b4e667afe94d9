// How adapters ended is kept in a run's folder: at once while the run continues, once where it is stopped and all end together.

import { expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import type { Outcome } from "../../src/files/record.ts";
import { type AdapterResult, endedEvent } from "../../src/session/events/events.ts";
import { recording } from "../../src/session/run/recording.ts";

const made = { settings: "", data: "", model: "" };
const resultOf = (i: number, status: AdapterResult["status"]): AdapterResult => ({
  ...{ name: `a${i}`, status, message: null, steps: i, tokens: 2 * i, seconds: 1, before: null, after: null },
  ...{ firstLoss: 2, lastLoss: 1, folder: null, made },
});

function open(mayWrite = () => true) {
  const stop = new AbortController();
  const job = { outcomes: new Map(), saved: new Map<string, number>(), estimate: null, stop };
  const written: Outcome[][] = [];
  const record = recording(job, "out", null, (_, adapters) => {
    written.push([...adapters]);
    if (!mayWrite()) throw new Error("the disk is full");
  });
  const end = (i: number, status: AdapterResult["status"]) =>
    record.listener(endedEvent({ name: `a${i}`, index: i }, resultOf(i, status)));
  const namesOf = (at: number) => written.at(at)?.map(({ name, status }) => [name, status]);
  return { ...{ stop, job, written, record, end, namesOf } };
}

test("each end is written at once while the run continues, also that of an adapter that is stopped alone", () => {
  const { written, end, namesOf } = open();
  for (const [i, status] of (["done", "stopped", "early", "failed"] as const).entries()) {
    end(i, status);
    expect(written.length).toBe(i + 1);
    expect(namesOf(-1)?.at(-1)).toEqual([`a${i}`, status]);
  }
});

test("a stop of 1,000 adapters writes the record once, whole; what is done is written before its checkpoints go", () => {
  const { stop, job, written, record, end, namesOf } = open();
  stop.abort();
  for (const i of range(1_000)) end(i, "stopped");
  expect(written.length).toBe(0);
  end(1_000, "done");
  expect(written.length).toBe(1);
  end(1_001, "stopped");
  record.end({ adapters: [], seconds: 1, tokens: 1, stopped: true, suspended: false });
  record[Symbol.dispose]();
  expect(written.length).toBe(2);
  expect(namesOf(-1)).toEqual(range(1_002).map((i) => [`a${i}`, i === 1_000 ? "done" : "stopped"]));
  expect(job.saved.size).toBe(1_002);
});

test("a run that fails while it stops keeps what has ended, and a disk that is full is one fault", () => {
  const failing = open();
  failing.stop.abort();
  failing.end(3, "stopped");
  failing.record[Symbol.dispose]();
  expect(failing.namesOf(-1)).toEqual([["a3", "stopped"]]);
  const full = open(() => false);
  full.stop.abort();
  full.end(3, "stopped");
  expect(() => full.record.end({ adapters: [], seconds: 1, tokens: 1, stopped: true, suspended: false })).toThrow("full");
  full.record[Symbol.dispose]();
  expect(full.written.length).toBe(1);
});

// When two passes of a schedule are the same work.

import { expect, test } from "bun:test";
import { type PackedBatch, sameBatch, sameRows } from "../../src/schedule/lists.ts";
import type { SegmentRef } from "../../src/schedule/segments.ts";

const segment = (changes: Partial<SegmentRef> = {}): SegmentRef => ({
  ...{ adapter: 2, step: 5, rows: [3, 1], firstRow: 7, miniBatch: [4, 3, 1], last: true },
  ...changes,
});
const first = segment({ adapter: 1, rows: [0], miniBatch: [0], firstRow: 0 });
const pass = (segments: readonly SegmentRef[], changes: Partial<PackedBatch> = {}): PackedBatch => ({
  ...{ id: 9, rows: 48, segments },
  ...changes,
});

test("copies of a pass are the same work; one that differs in anything is not", () => {
  const whole = pass([first, segment()]);
  expect(sameBatch(whole, whole)).toBe(true);
  expect(sameBatch(whole, structuredClone(whole))).toBe(true);
  const others: readonly Partial<SegmentRef>[] = [
    ...[{ adapter: 3 }, { step: 6 }, { firstRow: 8 }, { last: false }],
    ...[{ rows: [3] }, { rows: [3, 1, 4] }, { rows: [1, 3] }, { rows: [3, 2] }],
    ...[{ miniBatch: [4, 3] }, { miniBatch: [4, 3, 1, 0] }, { miniBatch: [4, 1, 3] }],
  ];
  for (const changes of others)
    for (const [a, b] of [
      [whole, pass([first, segment(changes)])],
      [pass([first, segment(changes)]), whole],
    ] as const)
      expect(sameBatch(a, b), JSON.stringify(changes)).toBe(false);
  for (const other of [pass([first]), pass([first, segment(), segment({ adapter: 4 })]), pass([segment(), first])]) {
    expect(sameBatch(whole, other)).toBe(false);
    expect(sameBatch(other, whole)).toBe(false);
  }
  expect(sameBatch(whole, pass(whole.segments, { id: 8 }))).toBe(false);
  expect(sameBatch(whole, pass(whole.segments, { rows: 72 }))).toBe(false);
});

test("rows are the same in the same order alone", () => {
  const rows = [5, 2, 7];
  for (const same of [rows, [...rows]]) expect(sameRows(rows, same)).toBe(true);
  for (const other of [[], [5, 2], [5, 2, 7, 1], [2, 5, 7], [5, 2, 8]]) {
    expect(sameRows(rows, other)).toBe(false);
    expect(sameRows(other, rows)).toBe(false);
  }
  expect(sameRows([], [])).toBe(true);
});

// Held-out rows that are trained, too: their loss says how well they are remembered, not how well others are answered.

import { placeOf, type Source } from "./jsonl.ts";
import { NoticeBook } from "./notices.ts";
import { isUnread, type Sample } from "./rows.ts";
import { walk } from "./walk.ts";

/** Rows to train on, of the beginning, that held-out rows are looked for among: all of millions would have to be read. */
const MOST = 1 << 18;
/** Places of a sequence by which most others differ. */
const PLACES = 8;

type Kept = { readonly ids: Int32Array; readonly at: number; readonly length: number; readonly row: number };

/** A number that equal sequences have in common. */
function keyOf(ids: Int32Array, at: number, length: number): number {
  let key = length;
  for (let place = 0; place < PLACES; place++) {
    const id = ids[at + Math.floor(((length - 1) * place) / (PLACES - 1))]!;
    key = (Math.imul(key, 0x01000193) ^ id) >>> 0;
  }
  return key;
}

function isSame({ ids: of, at: from, length: count }: Kept, ids: Int32Array, at: number, length: number): boolean {
  if (count !== length) return false;
  for (let i = 0; i < length; i++) if (of[from + i] !== ids[at + i]) return false;
  return true;
}

/** Tells of held-out rows whose tokens (of pairs: those of the better answer) a training row has, too. */
export function trainedToo(train: readonly Sample[], heldOut: readonly Sample[]): NoticeBook {
  const book = new NoticeBook();
  if (heldOut.length === 0 || isUnread(train) || isUnread(heldOut)) return book;
  const kept = new Map<number, Kept[]>();
  walk(heldOut, (ids, _, at, length, row, part) => {
    if (part !== 0) return;
    const key = keyOf(ids, at, length);
    kept.getOrInsertComputed(key, () => []).push({ ids, at, length, row });
  });
  const found = new Map<number, number>();
  walk(
    train,
    (ids, _, at, length, row, part) => {
      if (part !== 0) return;
      for (const one of kept.get(keyOf(ids, at, length)) ?? [])
        if (!found.has(one.row) && isSame(one, ids, at, length)) found.set(one.row, row);
    },
    0,
    Math.min(train.length, MOST),
  );
  const sourceOf = (rows: readonly Sample[], row: number): Source => rows[row]!.source;
  for (const [row, trained] of [...found].sort(([a], [b]) => a - b))
    book.add("held out", sourceOf(heldOut, row), `trained from ${placeOf(sourceOf(train, trained))}`);
  return book;
}

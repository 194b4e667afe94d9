// A pass of prompts from which those of some adapters are taken: the others are what they were, in fewer tiles.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { rowsOf, withoutRows } from "../../src/engine/generation/row-pass.ts";
import { type GeneratedSequence, prefill, type Tile } from "../../src/schedule/decode.ts";
import type { GenerationBatch } from "../../src/schedule/micro-batch.ts";

const TILE: Tile = { rows: 16, sameOrder: range(16), isApart: true };

/** The prompts of a pass that is read from itself, each by its target: what its last row sees, as ids. */
function promptsIn({ ids, bounds, targetRows, places, tileAdapter }: GenerationBatch) {
  return [...targetRows].flatMap((row) => {
    if (row < 0) return [];
    const [first, end] = [bounds[2 * row]!, bounds[2 * row + 1]!];
    expect(row).toBe(end - 1);
    for (let at = first; at < end; at++) expect([bounds[2 * at], bounds[2 * at + 1]]).toEqual([first, end]);
    const adapter = tileAdapter[Math.floor(row / TILE.rows)]!;
    return [{ adapter, ids: [...ids.subarray(first, end)], places: [...places.subarray(first, end)] }];
  });
}

test("prompts of other adapters attend to their own rows, wherever tiles went", () => {
  const seed = Math.floor(1e9 * Math.random());
  const rng = new Rng(seed);
  for (const _ of range(20)) {
    const sequences = range(2 + rng.below(6)).map((i): GeneratedSequence => {
      const ids = range(1 + rng.below(40)).map(() => rng.below(100));
      const choice = { temperature: rng.uniform(), topK: i, topP: rng.uniform(), uniform: rng.uniform(), logits: i % 2 === 0 };
      return { adapter: (i % 4) - 1, ids, firstRow: 64 * i, choice };
    });
    const batch = prefill(sequences, 3, TILE);
    const all = promptsIn(batch);
    expect(all.map(({ ids }) => ids)).toEqual(sequences.map(({ ids }) => [...ids]));
    const gone = rng.below(4) - 1;
    const rest = withoutRows(
      batch,
      rowsOf(batch, TILE.rows, (adapter) => adapter === gone),
      TILE.rows,
    );
    const kept = sequences.filter(({ adapter }) => adapter !== gone);
    expect(rest === null, `seed ${seed}`).toBe(kept.length === 0);
    if (rest === null) continue;
    expect(promptsIn(rest), `seed ${seed}`).toEqual(all.filter(({ adapter }) => adapter !== gone));
    const alone = prefill(kept, 3, TILE);
    for (const of of ["places", "ids", "bounds", "tileAdapter", "choices"] as const)
      expect(rest[of], `seed ${seed}, ${of}`).toEqual(alone[of]);
  }
});

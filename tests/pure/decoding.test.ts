// What passes of sequences hold: no more rows of prompts than may hold others up, and ahead of tokens only what will be asked.

import { expect, test } from "bun:test";
import { range, sum } from "../../src/base/shape.ts";
import { PIECE, TILED_PIECE, type Tile } from "../../src/schedule/decode.ts";
import type { GenerationBatch } from "../../src/schedule/micro-batch.ts";
import { Decoding, type Generation, type GenerationEngine } from "../../src/session/decoding.ts";

const tile: Tile = { rows: 4, sameOrder: range(4), isApart: true };

/** An engine whose next token is 7. `rows`: of each pass those of sequences; `most`: passes that were under way at once. */
function engineOf(follows: boolean, sequences = 3, tiledPrompt: number | null = null) {
  const seen = { rows: [] as number[], most: 0 };
  let underWay = 0;
  const engine: GenerationEngine = {
    ...{ tile, shortPositions: null, reading: "rows", tiledPrompt, follows },
    sizes: { rows: 4000, slots: 1, cache: { sequences, capacity: 4096 } },
    run: async (pass: GenerationBatch) => {
      seen.most = Math.max(seen.most, ++underWay);
      seen.rows.push(pass.places.filter((place) => place >= 0).length);
      await new Promise((resolve) => setImmediate(resolve));
      underWay--;
      const count = pass.targetRows.filter((row) => row >= 0).length;
      const zeros = new Float32Array(count);
      const logits = range(count).map(() => new Float32Array(8));
      return { tokens: new Int32Array(count).fill(7), logProbs: zeros, drawnLogProbs: zeros, logits };
    },
  };
  return { engine, seen };
}

/** Adds the sequences before the passes of these numbers; returns the passes after which each had its tokens. */
async function played(
  engine: GenerationEngine,
  wanted: readonly (Partial<Generation> & { limit: number; from?: number; logits?: boolean })[],
) {
  const decoding = new Decoding(engine);
  const got = wanted.map(() => [] as number[]);
  for (let pass = 0; pass < 10 || !decoding.isIdle; pass++) {
    for (const [i, { from = 0, ...of }] of wanted.entries())
      if (from === pass)
        decoding.add({
          ...{ adapter: 0, prompt: [1, 2], seed: i, sampling: { temperature: 0, topK: 0, topP: 1 }, stops: new Set<number>() },
          ...of,
          got: () => void got[i]!.push(pass),
        });
    await decoding.pass();
  }
  return got;
}

test("a pass goes ahead of its tokens where they will be asked for: none after the last, none where logits are", async () => {
  const { engine, seen } = engineOf(true);
  await played(engine, [{ limit: 6 }]);
  expect([seen.rows, seen.most]).toEqual([[2, 1, 1, 1, 1, 1], 2]);
  const asked = engineOf(true);
  await played(asked.engine, [{ limit: 6, logits: true }]);
  expect([asked.seen.rows, asked.seen.most]).toEqual([[2, 1, 1, 1, 1, 1], 1]);
});

test("a sequence that comes has its first token soon, whatever goes ahead; one that has no place holds nothing up", async () => {
  const { engine, seen } = engineOf(true);
  const [first, second] = await played(engine, [{ limit: 30 }, { limit: 3, from: 4 }]);
  expect(second![0]!).toBeLessThanOrEqual(6);
  expect([first!.length, sum(seen.rows)]).toEqual([30, 2 + 29 + 2 + 2]);
  const freed = await played(engineOf(true, 2).engine, [{ limit: 4 }, { limit: 30 }, { limit: 2 }]);
  expect(freed[2]![0]! - freed[0]!.at(-1)!).toBeLessThanOrEqual(2); // as soon as a place is free
  const full = engineOf(true, 1);
  const [, later] = await played(full.engine, [{ limit: 9 }, { limit: 2 }]);
  expect([full.seen.most, later!.length]).toEqual([2, 2]);
});

test("rows of prompts next to what is extended are as many as are multiplied at once with these, a half at least", async () => {
  for (const extended of [0, 100, 300]) {
    const { engine, seen } = engineOf(false, extended + 2);
    const long = { limit: 1, prompt: range(1900), from: 2 };
    await played(engine, [...range(extended).map(() => ({ limit: 40, prompt: [1] })), long]);
    const most = Math.max(PIECE / 2, PIECE - extended);
    expect(Math.max(...seen.rows.slice(2))).toBe(extended + most);
    expect(sum(seen.rows)).toBe(40 * extended + 1900);
  }
});

test("prompts that are multiplied by tiles are read whole where nothing is extended, in pieces next to what is", async () => {
  const prompt = range(3900);
  const alone = engineOf(false, 3, 64);
  await played(alone.engine, [{ limit: 1, prompt }]);
  expect(alone.seen.rows).toEqual([3900]);
  const beside = engineOf(false, 3, 64);
  await played(beside.engine, [{ limit: 40 }, { limit: 1, prompt, from: 2 }]);
  expect(Math.max(...beside.seen.rows)).toBe(1 + TILED_PIECE);
  expect(sum(beside.seen.rows)).toBe(2 + 39 + 3900);
});

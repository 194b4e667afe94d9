// Passes of generation as tables, and the order in which sequences get room.

import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { sameOrderPlaces } from "../../src/device/tile.ts";
import { stopTokens } from "../../src/files/generation.ts";
import { decode, prefill, type Reading, rowIndex, type Tile, tiledRows } from "../../src/schedule/decode.ts";
import type { GenerationBatch } from "../../src/schedule/micro-batch.ts";
import { Decoding, type NextToken } from "../../src/session/decoding/decoding.ts";
import { type GeneratedToken, type GenerationEngine, generate } from "../../src/session/decoding/generate.ts";

const tile: Tile = { rows: 4, sameOrder: [0, 1, 2], isApart: false };

describe("a pass", () => {
  test("reads prompts, each from a tile of its own on", () => {
    const pass = prefill(
      [
        { adapter: 1, ids: [5, 6, 7, 8, 9], firstRow: 20 },
        { adapter: -1, ids: [3], firstRow: 0 },
      ],
      2,
      tile,
    );
    expect([...pass.ids]).toEqual([5, 6, 7, 8, 9, 0, 0, 0, 3, 0, 0, 0]);
    expect([...pass.positions].slice(0, 5)).toEqual([0, 1, 2, 3, 4]);
    expect([...pass.places]).toEqual([20, 21, 22, 23, 24, -1, -1, -1, 0, -1, -1, -1]);
    expect([...pass.tileAdapter]).toEqual([1, 1, -1]);
    expect([...pass.bounds]).toEqual([0, 5, 0, 5, 0, 5, 0, 5, 0, 5, 5, 5, 6, 6, 7, 7, 8, 9, 9, 9, 10, 10, 11, 11]);
    expect([...pass.targetRows]).toEqual([4, 8, -1, -1]);
  });

  test("lets sequences grow, those of an adapter in one tile, at places that are alike", () => {
    const of = (adapter: number, length: number, firstRow: number) => ({ adapter, ids: range(length), firstRow });
    const pass = decode([of(1, 3, 10), of(-1, 1, 0), of(1, 2, 40), of(1, 7, 50)], 2, tile);
    expect([...pass.tileAdapter]).toEqual([-1, 1]);
    expect([...pass.ids]).toEqual([0, 0, 0, 0, 2, 1, 6, 0]);
    expect([...pass.positions]).toEqual([0, 0, 0, 0, 2, 1, 6, 0]);
    expect([...pass.places]).toEqual([0, -1, -1, -1, 12, 41, 56, -1]);
    expect([...pass.bounds]).toEqual([0, 1, 0, 0, 0, 0, 0, 0, 10, 13, 40, 42, 50, 57, 0, 0]);
    expect([...pass.targetRows]).toEqual([4, 0, 5, -1, 6, -1, -1, -1]);
    expect(() =>
      decode(
        range(4).map((i) => of(0, 1, i)),
        2,
        tile,
      ),
    ).toThrow("more than 3 sequences");
    expect(() => prefill([of(0, 1, 0), of(0, 1, 1)], 2, tile)).toThrow("two prompts of one adapter");
  });

  test("has any number of prompts and tiles of an adapter where tiles are multiplied apart", () => {
    const apart = { ...tile, isApart: true };
    const of = (adapter: number, length: number, firstRow: number) => ({ adapter, ids: range(length), firstRow });
    const extended = decode([...range(4).map((i) => of(0, 1 + i, 8 * i)), of(-1, 3, 40)], 1, apart);
    expect([...extended.tileAdapter]).toEqual([-1, 0, 0]);
    expect([...extended.targetRows].filter((row) => row >= 0)).toEqual([4, 5, 6, 8, 0]);
    expect([...prefill([of(0, 5, 0), of(0, 1, 8)], 1, apart).tileAdapter]).toEqual([0, 0, 0]);
  });

  test("reads pieces of prompts next to sequences that are extended, with a target where a prompt ends", () => {
    const apart = { ...tile, isApart: true };
    const prompt = { adapter: 0, ids: range(5), firstRow: 10 };
    const other = { adapter: 0, ids: range(3), firstRow: 30 };
    const pass = decode([{ ...prompt, read: 1, until: 4, isPrompt: true }, other], 1, apart);
    expect([...pass.tileAdapter]).toEqual([0, 0]);
    expect([...pass.ids]).toEqual([1, 2, 3, 0, 2, 0, 0, 0]);
    expect([...pass.places]).toEqual([11, 12, 13, -1, 32, -1, -1, -1]);
    expect([...pass.bounds]).toEqual([-11, 12, -11, 13, -11, 14, 0, 0, 30, 33, 0, 0, 0, 0, 0, 0]);
    expect([[...pass.targetRows].filter((row) => row >= 0), pass.choices.topK.length]).toEqual([[4], 1]);
    const last = decode([{ ...prompt, read: 4, until: 5 }, other], 1, apart);
    expect([...last.targetRows].filter((row) => row >= 0)).toEqual([0, 1]);
  });

  test("seats", () => {
    expect(range(7).map((i) => rowIndex(i, tile))).toEqual([0, 1, 2, 4, 5, 6, 8]);
    expect([0, 1, 3, 4].map((count) => tiledRows(count, tile))).toEqual([0, 4, 4, 8]);
    expect(sameOrderPlaces({ kind: "cpu", rowTile: 24 })).toEqual([0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]);
    expect(sameOrderPlaces({ kind: "cpu", rowTile: 8 })).toEqual(range(8));
    expect(sameOrderPlaces({ kind: "cuda", rowTile: 128 })).toEqual(range(128));
  });
});

/** An engine whose next token is one more than the last. */
function counting(sequences: number, rows: number, reading: Reading = "pieces", pages?: number) {
  const passes: GenerationBatch[] = [];
  const engine: GenerationEngine = {
    tile: { ...tile, isApart: reading === "rows" },
    shortPositions: null,
    reading,
    tiledPrompt: 4,
    sizes: { rows, slots: 2, cache: { sequences, capacity: 50, ...(pages === undefined ? {} : { pages }) } },
    run: async (pass) => {
      passes.push(pass);
      const wanted = [...pass.targetRows].filter((row) => row >= 0);
      const zeros = new Float32Array(wanted.length);
      return {
        tokens: Int32Array.from(wanted, (row) => pass.ids[row]! + 1),
        logProbs: zeros,
        drawnLogProbs: zeros,
        logits: [],
      };
    },
  };
  return { engine, passes };
}

describe("many sequences", () => {
  const wanted = range(20).map((i) => ({ adapter: (i % 3) - 1, prompt: range(1 + (i % 7)), limit: 1 + (i % 5), seed: 0 }));

  test("all get what they asked for, whatever room there is", async () => {
    for (const [sequences, rows, reading, pages] of [
      [1, 8, "pieces"],
      [2, 8, "whole"],
      [5, 12, "pieces"],
      [9, 100, "whole"],
      [20, 1000, "pieces", 7],
      [5, 12, "rows"],
      [20, 40, "rows"],
      [20, 1000, "rows", 5],
    ] as const) {
      const { engine, passes } = counting(sequences, rows, reading, pages);
      const tokens = wanted.map(() => [] as number[]);
      const ends: GeneratedToken[] = [];
      for await (const grown of generate(engine, wanted, { temperature: 0, topK: 0, topP: 1 }, new Set([9]))) {
        tokens[grown.index]!.push(grown.token);
        if (grown.end) ends.push(grown);
      }
      for (const [i, { prompt, limit }] of wanted.entries()) {
        const all = range(limit).map((step) => prompt.length + step);
        const stop = all.indexOf(9);
        expect(tokens[i]!).toEqual(stop < 0 ? all : all.slice(0, stop + 1));
        expect(ends.find(({ index }) => index === i)!.end).toBe(stop < 0 ? "length" : "stop");
      }
      for (const pass of passes) {
        const first = pass.rowTiles * tile.rows; // those by tiles run after the others
        expect(Math.max(first, pass.ids.length - first)).toBeLessThanOrEqual(rows);
        const kept = [...pass.places].filter((place) => place >= 0);
        expect(new Set(kept).size).toBe(kept.length);
        expect(Math.max(...kept)).toBeLessThan(sequences * 64);
      }
    }
  });
});

test("passes that follow one under way give each sequence the tokens that it would have without them", async () => {
  for (const seed of range(12)) {
    const rng = new Rng(seed);
    const wanted = range(24).map((i) => ({
      adapter: rng.below(3) - 1,
      prompt: range(1 + rng.below(9)).map(() => rng.below(60)),
      limit: 1 + rng.below(12),
      seed: i,
      pass: rng.below(10),
      cancelled: rng.below(6) === 0 ? rng.below(14) : null,
    }));
    const pages = seed % 3 === 0 ? 9 : undefined;
    const sampled = { temperature: 0.7, topK: 0, topP: 1 };
    /** A token depends on that before it, on where it is and on chance. */
    const run = async (follows: boolean) => {
      const tokens = wanted.map(() => [] as number[]);
      const { engine } = counting(5, 400, "rows", pages);
      let [last, underWay, most] = [new Int32Array(0), 0, 0];
      const next = async (pass: GenerationBatch) => {
        most = Math.max(most, ++underWay);
        const rows = [...pass.targetRows].filter((row) => row >= 0);
        const found = rows.map((row, i) => {
          const id = pass.ids[row]!;
          const before = id < 0 ? last[~id]! : id;
          return (7 * before + 3 * pass.positions[row]! + Math.floor(40 * pass.choices.uniform[i]!)) % 61;
        });
        last = Int32Array.from(found);
        await new Promise((resolve) => setImmediate(resolve));
        await new Promise((resolve) => setImmediate(resolve));
        underWay--;
        const zeros = new Float32Array(rows.length);
        return { tokens: Int32Array.from(found), logProbs: zeros, drawnLogProbs: zeros, logits: [] };
      };
      const decoding = new Decoding({ ...engine, follows, run: next });
      const asked = wanted.map((of, i) => ({
        ...{ adapter: of.adapter, prompt: of.prompt, limit: of.limit, seed: of.seed, sampling: sampled },
        ...{ stops: new Set([5, 9]), got: ({ token }: NextToken) => void tokens[i]!.push(token) },
      }));
      for (let pass = 0; pass < 60 || !decoding.isIdle; pass++) {
        for (const [i, of] of wanted.entries()) if (of.pass === pass) decoding.add(asked[i]!);
        for (const [i, of] of wanted.entries()) if (tokens[i]!.length === of.cancelled) decoding.cancel(asked[i]!);
        await decoding.pass();
      }
      return { tokens: tokens.map((of, i) => of.slice(0, wanted[i]!.cancelled ?? undefined)), most };
    };
    const [plain, ahead] = [await run(false), await run(true)];
    expect(ahead.tokens, `seed ${seed}`).toEqual(plain.tokens);
    expect([plain.most, ahead.most]).toEqual([1, 2]);
  }
});

test("a prompt is multiplied by tiles or by rows by its length alone, and what follows it by rows", async () => {
  const wanted = range(9).map((i) => ({
    adapter: (i % 3) - 1,
    prompt: range([3, 4, 9][i % 3]!).map((j) => 100 * i + j),
    limit: 4,
    seed: 0,
  }));
  const run = async (of: typeof wanted, rows: number) => {
    const { engine, passes } = counting(5, rows, "rows", 24);
    for await (const _ of generate(engine, of, { temperature: 0, topK: 0, topP: 1 }, new Set())) void _;
    for (const { ids, places, bounds, rowTiles, targetRows } of passes) {
      for (const [row, id] of ids.entries()) {
        const isTiled = row >= rowTiles * tile.rows;
        if (places[row]! < 0) {
          expect([bounds[2 * row]!, bounds[2 * row + 1]!]).toEqual(isTiled ? [-1, 0] : [0, 0]);
          continue;
        }
        const { length } = wanted[Math.floor(id / 100)]!.prompt;
        expect(isTiled, `token ${id}`).toBe(id % 100 < length && length >= 4);
      }
      for (const row of targetRows) if (row >= 0) expect(places[row]!).toBeGreaterThanOrEqual(0);
    }
    return passes.length;
  };
  for (const rows of [8, 12, 24, 400]) await run(wanted, rows);
  for (const of of wanted) expect(await run([of], 24)).toBe(4);
});

test("an owner whose answers end early has as many tokens as one that asks for few", async () => {
  const { engine } = counting(2, 100);
  const decoding = new Decoding(engine);
  const had = { early: 0, few: 0 };
  const ask = (owner: keyof typeof had): void => {
    const got = ({ end }: NextToken) => {
      had[owner]++;
      if (end !== null) ask(owner);
    };
    const choosing = { sampling: { temperature: 0, topK: 0, topP: 1 }, stops: new Set([9]), seed: 0, adapter: -1 };
    decoding.add({ ...choosing, owner, got, prompt: [owner === "early" ? 7 : 20], limit: owner === "early" ? 40 : 2 });
  };
  for (const _ of range(6)) for (const owner of ["early", "few"] as const) ask(owner);
  for (const _ of range(400)) await decoding.pass();
  expect(had.early + had.few).toBeGreaterThan(300);
  expect(had.early / had.few).toBeWithin(0.9, 1.1);
});

test("what ends a text is read from the model's folder", () => {
  const folder = mkdtempSync(join(tmpdir(), "mlora-stops-"));
  try {
    const put = (name: string, eos: unknown) => writeFileSync(join(folder, name), JSON.stringify({ eos_token_id: eos }));
    expect(stopTokens(folder)).toEqual([]);
    put("config.json", 3);
    expect(stopTokens(folder)).toEqual([3]);
    put("generation_config.json", [7, 8]);
    expect(stopTokens(folder)).toEqual([7, 8]);
    put("generation_config.json", null);
    expect(stopTokens(folder)).toEqual([3]);
    for (const wrong of ["</s>", [1, "2"], -1, 0.5]) {
      put("generation_config.json", wrong);
      expect(() => stopTokens(folder)).toThrow("expected token ids");
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

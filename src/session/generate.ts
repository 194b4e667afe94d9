// Generation of many sequences at once: each waits for room, is read, and gets a token a pass until it ends.

import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import { type Sampling, sample } from "../data/sample.ts";
import type { GenerationSizes } from "../plan/generation.ts";
import { decode, type GeneratedSequence, prefill, promptRows, type Tile } from "../schedule/decode.ts";
import type { GenerationBatch } from "../schedule/micro-batch.ts";

/** A prompt to continue under the adapter in a slot, or -1 for the base model alone, by `limit` tokens at most. */
export type Generation = {
  readonly adapter: number;
  readonly prompt: readonly number[];
  readonly limit: number;
  readonly seed: number;
};

export type GeneratedToken = {
  readonly index: number;
  readonly token: number;
  readonly end: "stop" | "length" | null;
  /** f32[vocab], which the token was sampled from. */
  readonly logits: Float32Array;
};

/** Stages that run passes of generation. */
export type GenerationEngine = {
  readonly tile: Tile;
  readonly sizes: Pick<GenerationSizes, "rows" | "slots" | "cache">;
  /** Positions up to which sequences are short for a LongRoPE; null for a model without one. */
  readonly shortPositions: number | null;
  /** The logits f32[vocab] of each sequence's next token, in the order of the pass's targets. */
  run(pass: GenerationBatch): Promise<readonly Float32Array[]>;
};

/** The stages of a run that have a cache. Each pass goes to all of them in one go, as evaluations do. */
export const engineOver = (bus: Bus, { sizes, tile, shortPositions }: Omit<GenerationEngine, "run">): GenerationEngine => ({
  tile,
  sizes,
  shortPositions,
  async run(batch) {
    return (await requestAll(bus, { type: "decode", batch })).at(-1)!;
  },
});

type Active = GeneratedSequence & { readonly ids: number[]; readonly index: number; readonly place: number; readonly rng: Rng };

/**
 * Tokens as they come, of any of the sequences. Random numbers are a function of the sequence's seed and prompt, and so are
 * its tokens: they do not depend on what else is generated. The stages must be given no other pass of generation until the
 * end, and no prompt may need more rows than they have.
 */
export async function* generate(
  engine: GenerationEngine,
  wanted: readonly Generation[],
  sampling: Sampling,
  stops: ReadonlySet<number>,
): AsyncGenerator<GeneratedToken> {
  const { sizes, tile, shortPositions } = engine;
  const { slots, rows: mostRows, cache } = sizes;
  const places = range(cache.sequences);
  const waiting = [...wanted.keys()];
  const active: Active[] = [];

  /**
   * The next prompts that there is room for: in order, one of each adapter, each adapter's sequences in a tile
   * of the passes to come.
   */
  const admit = (): Active[] => {
    const admitted: Active[] = [];
    let rows = 0;
    for (let i = 0; i < waiting.length && places.length > 0; ) {
      const index = waiting[i]!;
      const { adapter, prompt, limit, seed } = wanted[index]!;
      const others = [...active, ...admitted];
      const isFull = others.filter((other) => other.adapter === adapter).length >= tile.sameOrder.length;
      const isRead = adapter >= 0 && admitted.some((other) => other.adapter === adapter);
      const tiles = new Set([adapter, ...others.map((other) => other.adapter)]).size;
      const needed = promptRows(prompt.length, tile);
      if (isFull || isRead || rows + needed > mostRows || tiles * tile.rows > mostRows) {
        i++;
        continue;
      }
      rows += needed;
      waiting.splice(i, 1);
      const place = places.shift()!;
      const rng = new Rng(seed, prompt.length, ...prompt);
      // By all that may come, so that what is kept is of the same rope to the end.
      const isLong = shortPositions !== null && prompt.length + limit > shortPositions;
      admitted.push({ index, adapter, ids: [...prompt], firstRow: place * cache.capacity, place, rng, isLong });
    }
    return admitted;
  };

  /** Extends each sequence of a pass by a token. */
  const extend = async function* (sequences: readonly Active[], pass: GenerationBatch): AsyncGenerator<GeneratedToken> {
    const logits = await engine.run(pass);
    for (const [i, { index, ids, rng, place }] of sequences.entries()) {
      const { prompt, limit } = wanted[index]!;
      const token = sample(logits[i]!, sampling, rng.uniform());
      ids.push(token);
      const end = stops.has(token) ? "stop" : ids.length - prompt.length === limit ? "length" : null;
      if (end !== null) {
        active.splice(
          active.findIndex((other) => other.index === index),
          1,
        );
        places.push(place);
      }
      yield { index, token, end, logits: logits[i]! };
    }
  };

  while (waiting.length > 0 || active.length > 0) {
    const admitted = admit();
    active.push(...admitted);
    if (admitted.length > 0) yield* extend(admitted, prefill(admitted, slots, tile));
    else {
      const extended = [...active];
      yield* extend(extended, decode(extended, slots, tile));
    }
  }
}

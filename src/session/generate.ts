// Generation of many sequences at once: each waits for room, is read, and grows by a token a pass until it ends.

import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { type Sampling, sample } from "../data/sample.ts";
import { decode, type GenerationBatch, type Growing, prefill, promptRows, type Tile } from "../schedule/decode.ts";

/** What is to be continued: under the adapter in a slot, or -1 for the base alone, by `limit` tokens at most. */
export type Generation = {
  readonly adapter: number;
  readonly prompt: readonly number[];
  readonly limit: number;
  readonly seed: number;
};

export type GeneratedToken = { readonly index: number; readonly token: number; readonly end: "stop" | "length" | null };

/** What runs passes (engine/generator.ts). */
export type Engine = {
  readonly tile: Tile;
  readonly sizes: { readonly rows: number; readonly sequences: number; readonly capacity: number; readonly adapters: number };
  run(pass: GenerationBatch, sequences: number): Promise<readonly Float32Array[]>;
};

type Active = Growing & { readonly ids: number[]; readonly index: number; readonly place: number; readonly rng: Rng };

/**
 * Tokens as they come, of any of the sequences. Chance is a function of the sequence's seed and prompt, and so are its tokens: they do not
 * depend on what else is generated.
 */
export async function* generate(
  engine: Engine,
  wanted: readonly Generation[],
  sampling: Sampling,
  stops: ReadonlySet<number>,
): AsyncGenerator<GeneratedToken> {
  const { sizes, tile } = engine;
  const slots = Math.max(1, sizes.adapters);
  const places = range(sizes.sequences);
  const waiting = [...wanted.keys()];
  const active: Active[] = [];

  /** The next prompts that there is room for: in their order, but for one adapter's among others. */
  const admit = (): Active[] => {
    const admitted: Active[] = [];
    let rows = 0;
    for (let i = 0; i < waiting.length && places.length > 0; ) {
      const index = waiting[i]!;
      const { adapter, prompt, seed } = wanted[index]!;
      const beside = [...active, ...admitted].filter((other) => other.adapter === adapter).length;
      const alone = adapter < 0 || !admitted.some((other) => other.adapter === adapter);
      const needed = promptRows(prompt.length, tile);
      if (beside >= tile.sameOrder.length || !alone || rows + needed > sizes.rows) {
        i++;
        continue;
      }
      rows += needed;
      waiting.splice(i, 1);
      const place = places.shift()!;
      const rng = new Rng(seed, prompt.length, ...prompt);
      admitted.push({ index, adapter, ids: [...prompt], firstRow: place * sizes.capacity, place, rng });
    }
    return admitted;
  };

  /** Lets each sequence of a pass grow by what its logits say. */
  const extend = async function* (sequences: readonly Active[], pass: GenerationBatch): AsyncGenerator<GeneratedToken> {
    const logits = await engine.run(pass, sequences.length);
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
      yield { index, token, end };
    }
  };

  while (waiting.length > 0 || active.length > 0) {
    const admitted = admit();
    active.push(...admitted);
    if (admitted.length > 0) yield* extend(admitted, prefill(admitted, slots, tile));
    else {
      const growing = [...active];
      yield* extend(growing, decode(growing, slots, tile));
    }
  }
}

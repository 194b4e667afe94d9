// Sequences that are generated together, and join and leave at any time: each waits for room, is read, and gets a token a pass
// until it ends.

import { Rng } from "../base/rng.ts";
import { range } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import { type Sampling, sample } from "../data/sample.ts";
import type { GenerationSizes } from "../plan/generation.ts";
import { decode, type GeneratedSequence, prefill, promptRows, type Tile } from "../schedule/decode.ts";
import type { GenerationBatch } from "../schedule/micro-batch.ts";
import { Shares } from "./shares.ts";

/** A prompt to continue under the adapter in a slot, or -1 for the base model alone, by `limit` tokens at most. */
export type Generation = {
  readonly adapter: number;
  readonly prompt: readonly number[];
  readonly limit: number;
  readonly seed: number;
};

/** How a sequence's tokens are chosen, and the tokens that end it. */
export type Choosing = { readonly sampling: Sampling; readonly stops: ReadonlySet<number> };

export type NextToken = {
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

/**
 * `owner`: by whose share its prompt has its turn; sequences without one are all of one owner. `got` is called with each token
 * as it comes, `failed` with what ends this sequence alone; left out, the pass throws it.
 */
export type Wanted = Generation &
  Choosing & {
    readonly owner?: string;
    readonly got: (next: NextToken) => void;
    readonly failed?: (error: unknown) => void;
  };

const ownerOf = ({ owner = "" }: Wanted): string => owner;

type Active = GeneratedSequence & {
  readonly wanted: Wanted;
  readonly ids: number[];
  readonly place: number;
  readonly rng: Rng;
};

/**
 * Random numbers are a function of a sequence's seed and prompt, and so are its tokens: they do not depend on what else is
 * generated. The stages must be given no other pass of generation, and no prompt may need more rows than they have.
 */
export class Decoding {
  readonly #waiting: Wanted[] = [];
  readonly #active: Active[] = [];
  readonly #places: number[];

  constructor(
    private readonly engine: GenerationEngine,
    private readonly shares = new Shares(),
  ) {
    this.#places = range(engine.sizes.cache.sequences);
  }

  get isIdle(): boolean {
    return this.#waiting.length === 0 && this.#active.length === 0;
  }

  add(wanted: Wanted): void {
    this.#waiting.push(wanted);
  }

  /** Ends a sequence, which gets no further token. */
  cancel(wanted: Wanted): void {
    const waits = this.#waiting.indexOf(wanted);
    if (waits >= 0) this.#waiting.splice(waits, 1);
    const active = this.#active.findIndex((of) => of.wanted === wanted);
    if (active >= 0) this.#leave(this.#active[active]!);
  }

  /**
   * One pass: reads the next prompts that there is room for, or else extends each sequence by a token. Resolves to what it
   * read, null for nothing.
   */
  async pass(): Promise<"prompts" | "tokens" | null> {
    const { tile, sizes } = this.engine;
    const admitted = this.#admit();
    this.#active.push(...admitted);
    const extended = admitted.length > 0 ? admitted : [...this.#active];
    if (extended.length === 0) return null;
    const logits = await this.engine.run((admitted.length > 0 ? prefill : decode)(extended, sizes.slots, tile));
    for (const [i, of] of extended.entries())
      try {
        this.#extend(of, logits[i]!);
      } catch (error) {
        if (!of.wanted.failed) throw error;
        this.cancel(of.wanted);
        of.wanted.failed(error);
      }
    return admitted.length > 0 ? "prompts" : "tokens";
  }

  /**
   * The next prompts that there is room for: in order, one of each adapter, each adapter's sequences in a tile
   * of the passes to come.
   */
  #admit(): Active[] {
    const { tile, sizes, shortPositions } = this.engine;
    const admitted: Active[] = [];
    let rows = 0;
    if (this.#waiting.length === 0 || this.#places.length === 0) return admitted;
    for (const wanted of this.shares.inTurn([...this.#waiting], ownerOf)) {
      if (this.#places.length === 0) break;
      const { adapter, prompt, limit, seed } = wanted;
      const others = [...this.#active, ...admitted];
      const isFull = others.filter((other) => other.adapter === adapter).length >= tile.sameOrder.length;
      const isRead = adapter >= 0 && admitted.some((other) => other.adapter === adapter);
      const tiles = new Set([adapter, ...others.map((other) => other.adapter)]).size;
      const needed = promptRows(prompt.length, tile);
      if (isFull || isRead || rows + needed > sizes.rows || tiles * tile.rows > sizes.rows) continue;
      rows += needed;
      this.#waiting.splice(this.#waiting.indexOf(wanted), 1);
      const place = this.#places.shift()!;
      this.shares.charge(ownerOf(wanted), prompt.length + limit);
      const rng = new Rng(seed, prompt.length, ...prompt);
      // By all that may come, so that what is kept is of the same rope to the end.
      const isLong = shortPositions !== null && prompt.length + limit > shortPositions;
      admitted.push({ wanted, adapter, ids: [...prompt], firstRow: place * sizes.cache.capacity, place, rng, isLong });
    }
    return admitted;
  }

  #extend(of: Active, logits: Float32Array): void {
    if (!this.#active.includes(of)) return; // cancelled meanwhile
    const { prompt, limit, sampling, stops, got } = of.wanted;
    const token = sample(logits, sampling, of.rng.uniform());
    of.ids.push(token);
    const end = stops.has(token) ? "stop" : of.ids.length - prompt.length === limit ? "length" : null;
    if (end !== null) this.#leave(of);
    got({ token, end, logits });
  }

  #leave(of: Active): void {
    const { prompt, limit } = of.wanted;
    this.shares.refund(ownerOf(of.wanted), prompt.length + limit - of.ids.length);
    this.#active.splice(this.#active.indexOf(of), 1);
    this.#places.push(of.place);
  }
}

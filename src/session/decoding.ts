// Sequences that are generated together, and join and leave at any time: each waits for room, is read, and gets a token a pass
// until it ends.

import { RunError } from "../base/errors.ts";
import { Rng } from "../base/rng.ts";
import type { Sampling } from "../base/sample.ts";
import { range } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import type { GenerationSizes } from "../plan/generation.ts";
import {
  decode,
  type GeneratedSequence,
  prefill,
  promptRows,
  type Tile,
  type TokenChoice,
  tilesFor,
} from "../schedule/decode.ts";
import type { GenerationBatch, NextTokens } from "../schedule/micro-batch.ts";
import { Shares } from "./shares.ts";

/** A prompt to continue under the adapter in a slot, or -1 for the base model alone, by `limit` tokens at most. */
export type Generation = {
  readonly adapter: number;
  readonly prompt: readonly number[];
  readonly limit: number;
  readonly seed: number;
};

/** How a sequence's tokens are chosen, and the tokens that end it. `logits`: these are asked for with each token. */
export type Choosing = { readonly sampling: Sampling; readonly stops: ReadonlySet<number>; readonly logits?: boolean };

export type NextToken = {
  readonly token: number;
  readonly end: "stop" | "length" | null;
  /** Of the token, by the model's own distribution, and by the one that it was drawn from. */
  readonly logProb: number;
  readonly drawnLogProb: number;
  /** f32[vocab], which the token was drawn from; null where they were not asked for. */
  readonly logits: Float32Array | null;
};

/** Stages that run passes of generation. */
export type GenerationEngine = {
  readonly tile: Tile;
  readonly sizes: Pick<GenerationSizes, "rows" | "slots" | "cache">;
  /** Positions up to which sequences are short for a LongRoPE; null for a model without one. */
  readonly shortPositions: number | null;
  /** Whether short prompts are read next to sequences that are extended, row by row over the cache. */
  readonly readsByRow: boolean;
  /** Each sequence's next token, in the order of the pass's targets. */
  run(pass: GenerationBatch): Promise<NextTokens>;
};

/** The stages of a run that have a cache. Each pass goes to all of them in one go, as evaluations do. */
export const engineOver = (bus: Bus, engine: Omit<GenerationEngine, "run">): GenerationEngine => ({
  ...engine,
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
  /** Tokens whose keys are kept. */
  kept: number;
};

/**
 * Tokens of a prompt that is read by row: a tile of 128 rows takes 3.2 ms, 256 rows over the cache 20 ms (one H200, 7B), so
 * that 41 rows take as long as a tile. Of the prompt alone, so that a sequence's numbers are, too.
 */
const SHORT_PROMPT = 40;
/** Rows of a pass over the cache that has prompts in it, and how many of them are left for these at least. */
const [PASS_ROWS, PROMPT_ROWS] = [256, 64];

/**
 * Random numbers are a function of a sequence's seed and prompt, and so are its tokens: they do not depend on what else is
 * generated. The stages must be given no other pass of generation, and no prompt may need more rows than they have.
 */
export class Decoding {
  readonly #waiting: Wanted[] = [];
  readonly #active: Active[] = [];
  readonly #places: number[];
  /** The last pass read prompts alone. */
  #hasRead = false;

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
   * One pass: reads the next prompts that there is room for, or else extends each sequence by a token, next to pieces of short
   * prompts. Resolves to what it read, null for nothing.
   */
  async pass(): Promise<"prompts" | "tokens" | null> {
    const { tile, sizes } = this.engine;
    const admitted = this.#admit();
    this.#active.push(...admitted);
    const whole = this.#active.filter((of) => of.kept === 0 && !this.#isByRow(of.wanted));
    const parts = whole.length > 0 ? whole.map((of) => ({ of, read: 0, until: of.ids.length })) : this.#parts();
    if (parts.length === 0) return null;
    const chosen = parts.map(({ of, ...part }) => {
      return { ...of, ...part, ...(part.until === of.ids.length ? { choice: choiceOf(of) } : {}) };
    });
    const next = await this.engine.run((whole.length > 0 ? prefill : decode)(chosen, sizes.slots, tile));
    for (const { of, until } of parts) of.kept = until;
    const extended = parts.flatMap(({ of, until }) => (until === of.ids.length ? [of] : []));
    let asked = 0;
    for (const [i, of] of extended.entries()) {
      const logits = of.wanted.logits ? next.logits[asked++]! : null;
      const [token, logProb, drawnLogProb] = [next.tokens[i]!, next.logProbs[i]!, next.drawnLogProbs[i]!];
      try {
        this.#extend(of, { token, logProb, drawnLogProb, logits });
      } catch (error) {
        if (!of.wanted.failed) throw error;
        this.cancel(of.wanted);
        of.wanted.failed(error);
      }
    }
    return parts.some(({ of, read }) => read < of.wanted.prompt.length) ? "prompts" : "tokens";
  }

  #isByRow({ prompt }: Wanted): boolean {
    return this.engine.readsByRow && prompt.length <= SHORT_PROMPT;
  }

  /** The next token of each sequence whose prompt has been read, and as much of other prompts as a pass has room for. */
  #parts(): { readonly of: Active; readonly read: number; readonly until: number }[] {
    const { tile, sizes } = this.engine;
    const counts = new Map<number, number>();
    const fits = (adapter: number, rows: number): boolean => {
      const all = new Map(counts).set(adapter, (counts.get(adapter) ?? 0) + rows);
      return tilesFor(all.values(), tile) * tile.rows <= sizes.rows;
    };
    const grown = this.#active.filter(({ ids, kept }) => kept === ids.length - 1);
    const isMany = grown.length > PASS_ROWS - PROMPT_ROWS;
    // Where many are extended, prompts have a pass of their own between two of those sequences'.
    this.#hasRead = isMany && grown.length < this.#active.length && !this.#hasRead;
    const parts = (this.#hasRead ? [] : grown).map((of) => ({ of, read: of.kept, until: of.ids.length }));
    for (const { of } of parts) counts.set(of.adapter, (counts.get(of.adapter) ?? 0) + 1);
    let left = isMany && !this.#hasRead ? 0 : PASS_ROWS - parts.length;
    for (const of of this.#active) {
      if (of.kept === of.ids.length - 1) continue;
      let rows = Math.min(left, of.ids.length - of.kept);
      while (rows > 0 && !fits(of.adapter, rows)) rows--;
      if (rows === 0) continue;
      counts.set(of.adapter, (counts.get(of.adapter) ?? 0) + rows);
      left -= rows;
      parts.push({ of, read: of.kept, until: of.kept + rows });
    }
    return parts;
  }

  /**
   * The next prompts that there is room for in order: where an adapter's tiles are one product, one of each adapter, and each
   * adapter's sequences in a tile of the passes to come.
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
      const counts = new Map([[adapter, 1]]);
      for (const other of others) counts.set(other.adapter, (counts.get(other.adapter) ?? 0) + 1);
      const isFull = !tile.isApart && counts.get(adapter)! > tile.sameOrder.length;
      const isRead = !tile.isApart && adapter >= 0 && admitted.some((other) => other.adapter === adapter);
      const tiles = tilesFor(counts.values(), tile);
      const needed = this.#isByRow(wanted) ? 0 : promptRows(prompt.length, tile);
      if (isFull || isRead || rows + needed > sizes.rows || tiles * tile.rows > sizes.rows) continue;
      rows += needed;
      this.#waiting.splice(this.#waiting.indexOf(wanted), 1);
      const place = this.#places.shift()!;
      this.shares.charge(ownerOf(wanted), prompt.length + limit);
      const rng = new Rng(seed, prompt.length, ...prompt);
      // By all that may come, so that what is kept is of the same rope to the end.
      const isLong = shortPositions !== null && prompt.length + limit > shortPositions;
      admitted.push({ wanted, adapter, ids: [...prompt], firstRow: place * sizes.cache.capacity, place, rng, isLong, kept: 0 });
    }
    return admitted;
  }

  #extend(of: Active, next: Omit<NextToken, "end">): void {
    if (!this.#active.includes(of)) return; // cancelled meanwhile
    const { token } = next;
    if (token < 0) throw noNumbers();
    const { prompt, limit, stops, got } = of.wanted;
    of.ids.push(token);
    const end = stops.has(token) ? "stop" : of.ids.length - prompt.length === limit ? "length" : null;
    if (end !== null) this.#leave(of);
    got({ ...next, end });
  }

  #leave(of: Active): void {
    const { prompt, limit } = of.wanted;
    this.shares.refund(ownerOf(of.wanted), prompt.length + limit - of.ids.length);
    this.#active.splice(this.#active.indexOf(of), 1);
    this.#places.push(of.place);
  }
}

const choiceOf = ({ wanted: { sampling, logits = false }, rng }: Active): TokenChoice => {
  return { ...sampling, uniform: rng.uniform(), logits };
};

const noNumbers = (): RunError =>
  new RunError("generate.numbers", "the model's logits are no finite numbers", "the adapter or the base model is broken");

// Sequences that are generated together, and join and leave at any time: each waits for room, is read, and gets a token a pass
// until it ends.

import { RunError } from "../../base/errors.ts";
import { Rng } from "../../base/rng.ts";
import type { Sampling } from "../../base/sample.ts";
import { range, sum } from "../../base/shape.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import { rowsOfSequence } from "../../engine/generation/kv-cache.ts";
import type { GenerationSizes } from "../../plan/generation.ts";
import {
  decode,
  type GeneratedSequence,
  PIECE,
  prefill,
  promptRows,
  type Reading,
  TILED_PIECE,
  type Tile,
  type TokenChoice,
  tilesFor,
} from "../../schedule/decode.ts";
import type { GenerationBatch, NextTokens } from "../../schedule/micro-batch.ts";
import { PagePool } from "./page-pool.ts";
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
  readonly reading: Reading;
  /** Tokens of a prompt that is read by tiles, at least, where prompts are read in rows; null for none. */
  readonly tiledPrompt: number | null;
  /** Whether a pass that extends sequences may be given before the last one is answered (GeneratedSequence.follows). */
  readonly follows?: boolean;
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
 * `owner`: by whose share its prompt has its turn; sequences without one are all of one owner. `isFollowed`: whether a pass may
 * come after the one that chooses its token before that is known, where stages take such passes; left out, it may. `got` is
 * called with each token as it comes, `failed` with what ends this sequence alone; left out, the pass throws it.
 */
export type Wanted = Generation &
  Choosing & {
    readonly owner?: string;
    readonly isFollowed?: boolean;
    readonly got: (next: NextToken) => void;
    readonly failed?: (error: unknown) => void;
  };

const ownerOf = ({ owner = "" }: Wanted): string => owner;

type Active = GeneratedSequence & {
  readonly wanted: Wanted;
  readonly ids: number[];
  readonly place: number;
  readonly pages: number[];
  readonly rng: Rng;
  /** Tokens whose keys are kept. */
  kept: number;
};

/** Tokens of a sequence that a pass reads. */
type Part = { readonly of: Active; readonly read: number; readonly until: number };

/** A pass that the engine has been given. `ended`: sequences whose next token it chooses, in their order. */
type Flight = {
  readonly parts: readonly Part[];
  readonly ended: readonly Active[];
  readonly kind: "prompts" | "tokens";
  readonly next: Promise<NextTokens>;
};

/**
 * Rows of prompts in a pass next to `extended` sequences: those that are multiplied by rows are with these as many as are
 * multiplied at once, a half at least; those that are multiplied by tiles hold none up where nothing is extended.
 */
const promptRowsBeside = (extended: number, isTiled: boolean, most: number): number => {
  if (isTiled) return extended === 0 ? most : Math.min(most, TILED_PIECE);
  return Math.max(PIECE / 2, PIECE - extended);
};

/**
 * Random numbers are a function of a sequence's seed and prompt, and so are its tokens: they do not depend on what else is
 * generated, on how prompts are cut, or on where its pages lie. The stages must be given no other pass of generation, and no
 * prompt that is read whole may need more rows than they have.
 * Sequences have pages as they grow. Where none is free, the one that came last gives up its own, and what it had is read
 * again, each token as it was read before, when there are as many.
 */
export class Decoding {
  readonly #waiting: Wanted[] = [];
  /** In the order in which they were admitted. */
  readonly #active: Active[] = [];
  readonly #places: number[];
  readonly #pages: PagePool;
  /** The last pass read a piece of a prompt, and none of what is extended. */
  #hasRead = false;
  /** The pass after the last one, if it was given to the engine with that. */
  #ahead: Flight | null = null;

  constructor(
    private readonly engine: GenerationEngine,
    private readonly shares = new Shares(),
  ) {
    this.#places = range(engine.sizes.cache.sequences);
    this.#pages = new PagePool(engine.sizes.cache);
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
   * One pass: reads prompts or pieces of them, or extends each sequence by a token, or both. Resolves to "prompts" where it
   * read any of these, null for nothing. `isAlone`: nothing else waits for the stages, which may be given the next pass, too.
   */
  async pass(isAlone: () => boolean = () => true): Promise<"prompts" | "tokens" | null> {
    const ahead = this.#ahead?.ended.some((of) => this.#active.includes(of)) ? this.#ahead : null;
    this.#ahead = null;
    const flight = ahead ?? this.#begin();
    if (!flight) return null;
    this.#ahead = isAlone() ? this.#following(flight) : null;
    const next = await flight.next;
    for (const { of, until } of flight.parts) if (of.pages.length > 0) of.kept = until; // else it was cancelled meanwhile
    this.#grow(flight.ended, next);
    return flight.kind;
  }

  /** Gives the engine the next pass; null where there is nothing to do. */
  #begin(): Flight | null {
    const { tile, sizes, reading } = this.engine;
    this.#admit();
    const prompts = reading === "rows" ? [] : this.#prompts();
    const parts = prompts.length > 0 ? prompts : this.#rows();
    if (parts.length === 0) return null;
    const isPiece = prompts.some(({ read, until, of }) => read > 0 || until < of.wanted.prompt.length);
    this.#hasRead = isPiece;
    const chosen = parts.map(({ of, read, until }): GeneratedSequence => {
      const { adapter, ids, firstRow, isLong = false, wanted } = of; // by name: hundreds of copies take their time
      const isPrompt = read < wanted.prompt.length;
      const given = { adapter, ids, firstRow, isLong, read, until, isPrompt, isTiled: isPrompt && this.#isTiled(of) };
      return until === ids.length ? { ...given, choice: choiceOf(of) } : given;
    });
    const batch =
      prompts.length > 0 ? prefill(chosen, sizes.slots, tile, isPiece ? "cache" : "pass") : decode(chosen, sizes.slots, tile);
    const ended = parts.flatMap(({ of, until }) => (until === of.ids.length ? [of] : []));
    const kind = parts.some(({ of, read }) => read < of.wanted.prompt.length) ? "prompts" : "tokens";
    return { parts, ended, kind, next: this.#run(batch) };
  }

  #run(batch: GenerationBatch): Promise<NextTokens> {
    const next = this.engine.run({ ...batch, pages: this.#pages.changes() });
    this.#pages.told();
    return next;
  }

  /**
   * Gives the engine the pass after one that extends all there is, so that it need not wait for what the tokens are: what one
   * comes to that then turns out to have ended is dropped. Null where another pass may have to come first.
   */
  #following({ parts, kind }: Flight): Flight | null {
    const { tile, sizes, follows = false } = this.engine;
    if (!follows || kind !== "tokens" || parts.length !== this.#active.length) return null;
    if (this.#waiting.length > 0 && this.#places.length > 0) return null;
    const longer = parts.flatMap(({ of, read, until }, i) => {
      const isLast = until + 1 - of.wanted.prompt.length >= of.wanted.limit;
      return isLast ? [] : [{ of, follows: i, read: read + 1, until: until + 1 }];
    });
    const isExtended = ({ of, read, until }: Part) =>
      of.pages.length > 0 && until === of.ids.length && read === until - 1 && isPlain(of.wanted);
    if (longer.length === 0 || !parts.every(isExtended) || !longer.every(({ of, until }) => this.#pages.take(of, until)))
      return null;
    const chosen = longer.map(({ of, ...part }): GeneratedSequence => {
      const { adapter, ids, firstRow, isLong = false } = of;
      return { adapter, ids, firstRow, isLong, ...part, choice: choiceOf(of) };
    });
    const next = this.#run(decode(chosen, sizes.slots, tile));
    next.catch(() => undefined); // it may fail before the next pass is asked for
    return { parts: longer, ended: longer.map(({ of }) => of), kind, next };
  }

  #grow(ended: readonly Active[], next: NextTokens): void {
    let asked = 0;
    for (const [i, of] of ended.entries()) {
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
  }

  /**
   * Prompts, or pieces of long ones, that are read in a pass of their own: as many as there are rows for, and where an
   * adapter's tiles are one product, one of each adapter. After a piece it is the turn of what is extended.
   */
  #prompts(): Part[] {
    const { tile, sizes, reading } = this.engine;
    if (this.#hasRead && this.#active.some((of) => of.kept >= of.wanted.prompt.length)) return [];
    const parts: Part[] = [];
    let left = sizes.rows;
    for (const of of this.#active) {
      const { length } = of.wanted.prompt;
      if (of.kept >= length) continue;
      const isLong = reading === "pieces" && length > PIECE;
      const until = isLong ? Math.min(length, of.kept + PIECE) : length;
      const rows = promptRows(until - of.kept, tile);
      if (parts.length > 0 && isLong !== parts[0]!.of.wanted.prompt.length > PIECE) continue;
      if (!tile.isApart && of.adapter >= 0 && parts.some((other) => other.of.adapter === of.adapter)) continue;
      if (rows > left || !this.#pages.take(of, until)) continue;
      left -= rows;
      parts.push({ of, read: of.kept, until });
    }
    return parts;
  }

  /** The next token of each sequence whose prompt has been read, and, where rows are free, as much of others as fits. */
  #rows(): Part[] {
    const { tile, sizes, reading } = this.engine;
    const [byRow, byTile] = [new Map<number, number>(), new Map<number, number>()];
    const parts: Part[] = [];
    const put = (of: Active, rows: number, counts = byRow) => {
      counts.set(of.adapter, (counts.get(of.adapter) ?? 0) + rows);
      parts.push({ of, read: of.kept, until: of.kept + rows });
    };
    const isExtended = reading === "rows" ? isGrown : (of: Active) => of.kept >= of.wanted.prompt.length;
    for (const of of [...this.#active]) if (isExtended(of) && this.#make(of)) put(of, 1);
    for (let i = parts.length - 1; i >= 0; i--) if (parts[i]!.of.pages.length === 0) parts.splice(i, 1); // gave way to others
    if (reading !== "rows") return parts;
    const extended = parts.length;
    const [tiled, others] = [[] as Active[], [] as Active[]];
    for (const of of this.#active) if (!isGrown(of)) (this.#isTiled(of) && isInPrompt(of) ? tiled : others).push(of);
    for (const [reads, counts] of [[others, byRow] as const, [tiled, byTile] as const]) {
      let left = promptRowsBeside(extended, reads === tiled, sizes.rows);
      for (const [of, most] of inReadingOrder(reads, left)) {
        const end = isInPrompt(of) ? of.wanted.prompt.length : of.ids.length;
        let rows = Math.min(left, most, end - of.kept);
        const before = counts.get(of.adapter) ?? 0;
        const fits = (count: number) => {
          counts.set(of.adapter, before + count);
          const isIn = tilesFor(counts.values(), tile) * tile.rows <= sizes.rows; // one runs after the other
          counts.set(of.adapter, before);
          return isIn;
        };
        while (rows > 0 && !fits(rows)) rows--;
        if (rows === 0 || !this.#resumes(of) || !this.#pages.take(of, of.kept + rows)) continue;
        put(of, rows, counts);
        left -= rows;
      }
    }
    return parts;
  }

  /** Whether its prompt is multiplied by tiles: by its length alone, so that its numbers do not depend on others. */
  #isTiled({ wanted: { prompt } }: Active): boolean {
    const { reading, tiledPrompt } = this.engine;
    return reading === "rows" && tiledPrompt !== null && prompt.length >= tiledPrompt;
  }

  /** Whether a sequence has pages for its next token; those that came last give up theirs for it. */
  #make(of: Active): boolean {
    while (!this.#pages.take(of, of.kept + 1)) {
      const last = this.#active.findLast(({ pages }) => pages.length > 0)!;
      this.#pages.release(last);
      last.kept = 0;
      if (last === of) return false;
    }
    return true;
  }

  /** Whether one that gave up its pages has enough for more than the tokens that it had. */
  #resumes(of: Active): boolean {
    return of.pages.length > 0 || this.#pages.lacking(of, of.ids.length + 1) <= this.#pages.free;
  }

  /** Those that come next, in their owners' turns, where there are places, pages and, in tiles of passes to come, rows. */
  #admit(): void {
    const { tile, sizes, shortPositions } = this.engine;
    if (this.#waiting.length === 0 || this.#places.length === 0) return;
    let free = this.#pages.free;
    for (const of of this.#active) free -= this.#pages.lacking(of, of.ids.length + 1);
    const counts = new Map<number, number>();
    for (const { adapter } of this.#active) counts.set(adapter, (counts.get(adapter) ?? 0) + 1);
    for (const wanted of this.shares.inTurn([...this.#waiting], ownerOf)) {
      if (this.#places.length === 0) break;
      const { adapter, prompt, limit, seed } = wanted;
      const pages = this.#pages.lacking({ pages: [] }, prompt.length + 1);
      if (pages > free && this.#active.length > 0) break;
      const count = (counts.get(adapter) ?? 0) + 1;
      const tiles = tilesFor(new Map(counts).set(adapter, count).values(), tile);
      if ((!tile.isApart && count > tile.sameOrder.length) || tiles * tile.rows > sizes.rows) continue;
      counts.set(adapter, count);
      free -= pages;
      this.#waiting.splice(this.#waiting.indexOf(wanted), 1);
      const place = this.#places.shift()!;
      this.shares.charge(ownerOf(wanted), prompt.length + limit);
      const rng = new Rng(seed, prompt.length, ...prompt);
      // By all that may come, so that what is kept is of the same rope to the end.
      const isLong = shortPositions !== null && prompt.length + limit > shortPositions;
      const firstRow = place * rowsOfSequence(sizes.cache);
      this.#active.push({ wanted, adapter, ids: [...prompt], firstRow, place, pages: [], rng, isLong, kept: 0 });
    }
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
    this.#pages.release(of);
  }
}

/** Whether all but its last token has been read. */
const isGrown = ({ ids, kept }: Active): boolean => kept === ids.length - 1;

/** Whether nothing of its next token is asked for but itself, and another pass may come before it is known. */
const isPlain = ({ logits = false, isFollowed = true }: Wanted): boolean => !logits && isFollowed;

const isInPrompt = ({ kept, wanted }: Active): boolean => kept < wanted.prompt.length;

/**
 * What is read next, and how much of each at most: half of the rows, and those that the others do not need, are for the one
 * that came first, so that it is read however many short ones come; the others are for those that end soonest.
 */
function* inReadingOrder(reading: readonly Active[], rows: number): Generator<readonly [Active, number]> {
  const [first, ...others] = reading;
  if (!first) return;
  const left = ({ ids, kept }: Active) => ids.length - kept;
  yield [first, Math.max(Math.floor(rows / 2), rows - sum(others.map(left)))];
  for (const of of others.sort((a, b) => left(a) - left(b))) yield [of, rows];
}

const choiceOf = ({ wanted: { sampling, logits = false }, rng }: Active): TokenChoice => {
  const { temperature, topK, topP } = sampling;
  return { temperature, topK, topP, uniform: rng.uniform(), logits };
};

const noNumbers = (): RunError =>
  new RunError("generate.numbers", "the model's logits are no finite numbers", "the adapter or the base model is broken");

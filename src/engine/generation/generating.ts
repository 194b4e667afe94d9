// Generation on a stage: passes that read prompts or extend sequences, and the next tokens on the last stage.

import { invariant } from "../../base/errors.ts";
import { Later } from "../../bus/bus.ts";
import { firstRows } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { nextIds } from "../../ops/choose.ts";
import type { GenerationBatch, NextTokens } from "../../schedule/micro-batch.ts";
import type { Ground } from "../head/contrast.ts";
import { readLogits } from "../head/head.ts";
import type { Batch } from "../layers/batch.ts";
import type { Activations } from "../layers/buffers.ts";
import type { Decoder } from "../layers/decoder.ts";
import { tablePositions } from "../operations/rope.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";
import type { Recorder } from "../recorder.ts";
import type { Neighbours, StageConfig } from "../stage.ts";
import type { StageBuffers } from "../stage-buffers.ts";
import { type Cached, PageTable, rowsOfSequence } from "./kv-cache.ts";
import { nextTokens, tokensIn } from "./next-tokens.ts";
import {
  chooseByRow,
  extendsByRow,
  rowBatch,
  rowsOf,
  rowTables,
  type SequenceRow,
  sequenceRows,
  tilesOf,
  withoutRows,
} from "./row-pass.ts";

type Passed = { readonly batch: Batch; readonly acts: Activations };

/** What a stage lends. */
type Lent = {
  readonly device: Device;
  readonly config: StageConfig;
  readonly pool: AdapterPool;
  readonly decoder: Decoder;
  readonly buffers: StageBuffers;
  readonly neighbours: Neighbours;
  readonly recorder: Recorder;
  /** Runs a packed batch; `then` reads what came of it, before its memory is another's. */
  readonly run: <T>(batch: GenerationBatch, cached: Cached, then: (passed: Passed) => Promise<T>) => Promise<T>;
  /** The memory of a pass, while `work` needs it. */
  readonly borrow: <T>(work: (acts: Activations, slot: number) => Promise<T>) => Promise<T>;
  /** The head over what a pass left. */
  readonly ground: (passed: Passed) => Ground;
};

/** What comes of a pass, or will come of one that is under way. */
type Found = NextTokens | null | Later<NextTokens>;

const arrived = (found: Found): Promise<NextTokens | null> | NextTokens | null =>
  found instanceof Later ? found.reply : found;

export class Generating {
  readonly #byRow: boolean;
  readonly #pages: PageTable | null;
  /** Of each sequence of the last pass by rows, its target there. */
  #targetOf = new Int32Array(0);

  constructor(private readonly of: Lent) {
    this.#pages = of.config.sizes.cache ? new PageTable(of.config.sizes.cache) : null;
    this.#byRow = of.device.hasFewRows && extendsByRow(of.decoder.program, of.device, of.config.sizes);
  }

  /** Null on a stage that is not the last. */
  async decode(batch: GenerationBatch): Promise<Found> {
    const { device, buffers } = this.of;
    this.#pages?.update(device, buffers.pages!, batch.pages);
    const { rowTiles } = batch;
    if (rowTiles === batch.tileAdapter.length) return await this.#extended(batch);
    if (rowTiles === 0) return await this.#heads(batch);
    const byRow = rowsOf(batch, device.rowTile, () => true, 0, rowTiles);
    const byTile = rowsOf(batch, device.rowTile, () => true, rowTiles);
    const [rest, own] = [withoutRows(batch, byTile, device.rowTile), withoutRows(batch, byRow, device.rowTile)];
    const [read, extended] = [await this.#heads(own!), await arrived(await this.#extended(rest!))];
    return read && extended && joined(batch, byTile, read, extended);
  }

  /** By rows, and by tiles what cannot be. */
  async #extended(batch: GenerationBatch): Promise<Found> {
    const { device, pool } = this.of;
    const rows = this.#byRow && batch.from === "cache" ? sequenceRows(batch, device.rowTile, pool) : [];
    if (rows.length === 0) return await this.#heads(batch);
    const found = await this.#rows(batch, rows);
    const rest = withoutRows(batch, rows, device.rowTile);
    if (!rest) return found;
    const extended = await arrived(found);
    const others = await this.#heads(rest);
    return extended && others && joined(batch, rows, extended, others);
  }

  /** By tiles, adapters that change the head one by one: a tile of targets holds those of several sequences. */
  async #heads(batch: GenerationBatch): Promise<NextTokens | null> {
    const { device, pool } = this.of;
    const own = batch.tileAdapter.find((slot) => slot >= 0 && pool.adapter(slot)?.tables?.head !== undefined);
    if (own === undefined) return await this.#tiles(batch);
    const rows = rowsOf(batch, device.rowTile, (adapter) => adapter === own);
    const rest = withoutRows(batch, rows, device.rowTile);
    if (!rest) return await this.#tiles(batch);
    const alone = withoutRows(
      batch,
      rowsOf(batch, device.rowTile, (adapter) => adapter !== own),
      device.rowTile,
    );
    const [mine, others] = [await this.#tiles(alone!), await this.#heads(rest)];
    return mine && others && joined(batch, rows, mine, others);
  }

  #cached(batch: GenerationBatch, places: Tensor, tiles: Tensor | null, areAllTiled = false): Cached {
    const { cache, pages } = this.of.buffers;
    const { cache: sizes } = this.of.config.sizes;
    invariant(cache && sizes, "a stage without a cache cannot generate");
    return { cache, places, pages: pages!, tiles, areAllTiled, capacity: rowsOfSequence(sizes), from: batch.from };
  }

  async #tiles(batch: GenerationBatch): Promise<NextTokens | null> {
    const { device, buffers, config, ground } = this.of;
    invariant(!follows(batch), "a pass of tiles follows one that may be under way");
    this.#targetOf = new Int32Array(0);
    const places = firstRows(buffers.places!, batch.ids.length);
    const words = batch.from === "cache" && device.hasFewRows ? tilesOf(batch.bounds) : new Int32Array(0);
    const tiles = words.length > 0 ? firstRows(buffers.tiles!, words.length / 2) : null;
    if (tiles) device.write(tiles, words);
    const areAllTiled = tiles !== null && batch.bounds.every((first, i) => i % 2 === 1 || first < 0);
    const cached = this.#cached(batch, places, tiles, areAllTiled);
    device.write(places, batch.places);
    return await this.of.run(batch, cached, async (passed) => {
      return config.layerRange.last ? await nextTokens(ground(passed), buffers.choices!, passed.batch, batch) : null;
    });
  }

  /** In the order of the sequences. */
  async #rows(batch: GenerationBatch, sequences: readonly SequenceRow[]): Promise<Found> {
    const { device, buffers, config, decoder, pool, neighbours, recorder, ground } = this.of;
    const { first, last } = config.layerRange;
    const { batch: pass, places, source, tiles, settings, key } = rowBatch(buffers.rowTables!, pool, sequences);
    const positions = tablePositions(config, batch.positions, (row) => {
      return pool.adapter(batch.tileAdapter[Math.floor(row / device.rowTile)]!)?.isLong === true;
    });
    const tables = rowTables(batch, positions, sequences, pool, this.#targetOf);
    device.write(firstRows(buffers.rowTables!, tables.length), tables);
    if (follows(batch)) nextIds(device, { chosen: buffers.choices!.chosen, source, ids: pass.ids });
    this.#targetOf = targetsOf(sequences, batch);
    decoder.refresh(); // apart from what is the same each time
    const cached = this.#cached(batch, places, tiles);
    const adapters = [...new Set(sequences.map(({ adapter }) => adapter))].filter((adapter) => adapter >= 0);
    const timed = recorder.timer(null, adapters);
    return await this.of.borrow(async (acts, slot) => {
      const stream = firstRows(acts.inputs[0]!, pass.rows);
      if (!first) await timed("receive", () => neighbours.previous!.receive("activation.decode", stream));
      const { fetched } = decoder.prepare(pass, acts); // apart from what is recorded, as it is on another stream
      fetched?.();
      const prepared = { fetched: fetched && (() => undefined) };
      const forward = () => decoder.forward(pass, acts, buffers.work, prepared, { cached, trains: false });
      const targets = sequences.filter(({ sequence }) => sequence >= 0);
      const asked: number[] = [];
      for (let i = 0; i < targets.length; i++) if (batch.choices.logits[targets[i]!.sequence]) asked.push(i);
      const chosen = last ? firstRows(buffers.choices!.chosen, pass.targets) : null;
      const head = () => ground({ batch: pass, acts });
      const work = () => {
        forward();
        if (chosen && asked.length === 0 && targets.length > 0) for (const _ of chooseByRow(head(), pass, settings, chosen));
      };
      const record = `${key}, pass ${slot}, ${asked.length > 0 ? "layers" : "all"}`;
      // Factors that are made in the pass are read before a kernel waits for what makes them.
      await timed("decode", () => device.replay(record, work, pass.expanding.size === 0));
      if (!chosen) {
        await timed("send", () => neighbours.next!.send("activation.decode", firstRows(acts.inputs.at(-1)!, pass.rows)));
        return null;
      }
      const logits: Float32Array[] = [];
      if (asked.length > 0)
        for (const { from, y } of chooseByRow(head(), pass, settings, chosen)) {
          const here = asked.filter((of) => of >= from && of < from + y.shape[0]!).map((of) => of - from);
          await readLogits(device, head().head, y, here, (_, values) => logits.push(values));
        }
      if (targets.length === 0) {
        await device.idle();
        return inOrder([], tokensIn(new Uint8Array(0), []), batch, []);
      }
      const { bytes } = await device.peek([chosen]); // copied as soon as they are chosen
      return new Later(bytes.then(([read]) => inOrder(targets, tokensIn(read!, [...targets.keys()]), batch, logits)));
    });
  }
}

const follows = ({ ids }: GenerationBatch): boolean => ids.some((id) => id < 0);

/** Of each sequence of a pass, which of its rows' targets it has. */
function targetsOf(rows: readonly SequenceRow[], { choices }: GenerationBatch): Int32Array<ArrayBuffer> {
  const found = new Int32Array(choices.logits.length).fill(-1);
  let target = 0;
  for (let i = 0; i < rows.length; i++) if (rows[i]!.sequence >= 0) found[rows[i]!.sequence] = target++;
  return found;
}

/** What was found of rows, by the order of their sequences. */
function inOrder(
  sequences: readonly SequenceRow[],
  { tokens, logProbs, drawnLogProbs }: Omit<NextTokens, "logits">,
  { choices }: GenerationBatch,
  logits: readonly Float32Array[],
): NextTokens {
  const rowOf = new Int32Array(choices.logits.length).fill(-1);
  for (let i = 0; i < sequences.length; i++) rowOf[sequences[i]!.sequence] = i;
  const [count, asked] = [sequences.length, [] as number[]];
  const found = { tokens: new Int32Array(count), logProbs: new Float32Array(count), drawnLogProbs: new Float32Array(count) };
  let next = 0;
  for (const row of rowOf) {
    if (row < 0) continue;
    found.tokens[next] = tokens[row]!;
    found.logProbs[next] = logProbs[row]!;
    found.drawnLogProbs[next++] = drawnLogProbs[row]!;
  }
  for (let i = 0; i < count; i++) if (choices.logits[sequences[i]!.sequence]) asked.push(sequences[i]!.sequence);
  return { ...found, logits: [...asked.keys()].sort((a, b) => asked[a]! - asked[b]!).map((i) => logits[i]!) };
}

/** Both in the order of the pass. */
function joined(batch: GenerationBatch, rows: readonly SequenceRow[], extended: NextTokens, others: NextTokens): NextTokens {
  const own = new Set(rows.map(({ sequence }) => sequence));
  const next = { own: 0, others: 0, ownLogits: 0, otherLogits: 0 };
  const found = Array.from(batch.choices.topK, (_, sequence) => {
    const isOwn = own.has(sequence);
    const [of, i] = isOwn ? [extended, next.own++] : [others, next.others++];
    const isAsked = batch.choices.logits[sequence] !== 0;
    const logits = isAsked ? [of.logits[isOwn ? next.ownLogits++ : next.otherLogits++]!] : [];
    return { token: of.tokens[i]!, logProb: of.logProbs[i]!, drawnLogProb: of.drawnLogProbs[i]!, logits };
  });
  return {
    tokens: Int32Array.from(found, ({ token }) => token),
    logProbs: Float32Array.from(found, ({ logProb }) => logProb),
    drawnLogProbs: Float32Array.from(found, ({ drawnLogProb }) => drawnLogProb),
    logits: found.flatMap(({ logits }) => logits),
  };
}

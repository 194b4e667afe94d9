// The data of adapters before it is read: the same rows in the same order, each read when it is asked for. It holds where each
// row of a file is one row to train on, as most are; whether that is so is known when all are read (`isSame`).

import { now, sleep } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { sum } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import { referenceOf, rowKindOf } from "../objectives/registry.ts";
import type { FilesOf } from "./data-file.ts";
import { type Dataset, type DatasetRecipe, loadDataset, type ReadFiles } from "./dataset.ts";
import type { FileRows } from "./file-rows.ts";
import type { FileReading } from "./pack-rows.ts";
import { chunkReader } from "./row-chunks.ts";
import { placesOf, type RowPlaces } from "./row-places.ts";
import { ints, type PackedFile, packedOf, type Sample, type Sequence, sampleOf, unpack } from "./rows.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What a run began with is not what its rows are, as far as they are read. */
export class RowsDiffer extends Error {}

/** Bytes of a row, at most: the reader has limits of time and memory for larger ones. */
const LARGEST = 1 << 20;
/** Rows that are remembered of each file: those of the last steps, which are asked for several times. */
const MOST_LATEST = 1 << 12;
/** Held-out rows that are read at once: a run evaluates all of them before its first step. */
const MOST_HELD_OUT = 1 << 14;
/** Rows by which the tokens of all are guessed. */
const GUESSED_BY = 64;
/** Milliseconds between two moments at which timers, requests and signals run. */
const LOOK_MS = 50;

/** Data of which `eval` is read; `about`: tokens of a training row, and those that are learned, by a few of them. */
export type UnreadDataset = Dataset & { readonly about: { readonly tokens: number; readonly targets: number } };

/**
 * Whether rows of this recipe are known one by one: those of an objective that measures each before the first step, compares
 * it with another or answers it, of a mix by tokens, and such as become several or none, are not.
 */
export const isKnownByRow = ({
  objective,
  thoughts,
  overlong,
  mix,
}: DatasetRecipe & { readonly mix: { readonly by: string } | null }): boolean =>
  ["single", "paired"].includes(rowKindOf(objective)) &&
  referenceOf(objective) === null &&
  thoughts !== "every-turn" &&
  overlong !== "drop" &&
  mix?.by !== "tokens";

/** The data of adapters, unread, until it is disposed of. Rows throw RowsDiffer where they are at fault. */
export class UnreadData implements Disposable {
  readonly #places = new Map<string, RowPlaces>();
  readonly #read: ReadFiles = new Map();

  private constructor(
    readonly tokenizer: Tokenizer,
    readonly vocab: number,
    readonly files: FilesOf,
  ) {}

  /** Null where the rows of a file have no places. `signal` is looked at now and then. */
  static async open(
    recipes: readonly DatasetRecipe[],
    {
      tokenizer,
      vocab,
      files,
      signal,
    }: { readonly tokenizer: Tokenizer; readonly vocab: number; readonly files: FilesOf; readonly signal: AbortSignal },
  ): Promise<{ readonly datasets: readonly UnreadDataset[]; readonly data: UnreadData } | null> {
    using opened = new DisposableStack();
    const data = opened.use(new UnreadData(tokenizer, vocab, files));
    const look = looking(signal);
    const listed = [...new Set(recipes.flatMap(({ train, eval: heldOut }) => [...train, ...heldOut]))];
    for (const file of listed.flatMap((name) => files.get(name) ?? [])) {
      if (data.#places.has(file.name)) continue;
      const found = placesOf(file);
      let step = found.next();
      for (; !step.done; step = found.next()) await look();
      if (step.value === null) return null;
      data.#places.set(file.name, step.value);
    }
    const datasets: UnreadDataset[] = [];
    const read: { readonly unread: readonly Sample[]; readonly rows: readonly Sample[] }[] = []; // for sweeps
    for (const recipe of recipes) {
      const of = loadDataset(recipe, tokenizer, vocab, data.#read, {}, files, null, null, (from) => data.#rowsOf(from));
      if (of.eval.length > MOST_HELD_OUT || of.train.length === 0) return null;
      let heldOut = read.find(({ unread }) => isTheSame(unread, of.eval))?.rows;
      if (heldOut === undefined) {
        const rows: Sample[] = [];
        for (const row of of.eval) {
          rows.push(row);
          await look();
        }
        read.push({ unread: of.eval, rows });
        heldOut = rows;
      }
      datasets.push({ ...of, eval: heldOut, about: await guess(of.train, look) });
      await look();
    }
    opened.move();
    return { datasets, data };
  }

  [Symbol.dispose](): void {
    for (const places of this.#places.values()) places[Symbol.dispose]();
    this.#places.clear();
  }

  #rowsOf({ file, recipe, tokenizer, vocab, most }: FileReading): FileRows {
    const places = this.#places.get(file.name)!;
    const count = Math.min(places.lines.length, most ?? Number.POSITIVE_INFINITY);
    if (count === 0) throw new RowsDiffer(`${file.name}: has no row`);
    const read = chunkReader({ file, recipe, vocab, settled: { format: recipe.format } }, tokenizer);
    const latest = new Map<number, Sample>();
    const readNow = (row: number): Sample => {
      const line = places.lines[row]!;
      if (places.bytes(row) > LARGEST) throw new RowsDiffer(`${file.name}:${line}: is too long to be read by itself`);
      const { samples, faults } = attempt(() => read([{ line, bytes: 0, read: () => places.read(row) }]));
      if (faults.length > 0 || samples.length !== 1)
        throw new RowsDiffer(faults[0] ?? `${file.name}:${line}: is ${counted(samples.length, "row")}`);
      return ownOf(samples[0]!);
    };
    readNow(0); // settles the form of all
    const remembered = (row: number): Sample => {
      const sample = latest.get(row) ?? readNow(row);
      if (!latest.has(row) && latest.size >= MOST_LATEST) latest.delete(latest.keys().next().value!);
      latest.set(row, sample);
      return sample;
    };
    const packed: PackedFile = {
      file: file.name,
      paired: rowKindOf(recipe.objective) === "paired",
      lines: places.lines.subarray(0, count),
      ...{ index: ints(0), labels: new Uint8Array(), pieces: [] },
      unread: { read: remembered, latest },
    };
    return { samples: unpack({ files: [packed], chosen: null }), rows: count, truncated: 0, dropped: 0, notices: [] };
  }
}

/** Lets timers, requests and signals run, where they have not for a while. */
function looking(signal: AbortSignal): () => Promise<void> {
  let looked = now();
  return async () => {
    if (now() - looked < LOOK_MS) return;
    await sleep(0);
    signal.throwIfAborted();
    looked = now();
  };
}

/** What is wrong with a file is the reader's to say, which comes to the first fault first. */
function attempt<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw error instanceof RequestError ? new RowsDiffer(error.message, { cause: error }) : error;
  }
}

/** Whether both are the same rows of the same files, which were read in the same way. */
function isTheSame(one: readonly Sample[], other: readonly Sample[]): boolean {
  const [a, b] = [packedOf(one), packedOf(other)];
  if (!a || !b || one.length !== other.length || a.files.length !== b.files.length) return false;
  const isChosen = a.chosen === null ? b.chosen === null : b.chosen !== null && bytesOf(a.chosen).equals(bytesOf(b.chosen));
  return isChosen && a.files.every(({ unread }, i) => unread === b.files[i]!.unread);
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Int32Array) => Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength);

/** A row without the memory that it was packed in. */
function ownOf({ ids, mask, other, ...rest }: Sample): Sample {
  const own = (of: Sequence): Sequence => ({ ids: of.ids.slice(), mask: of.mask.slice() });
  return { ...rest, ...own({ ids, mask }), ...(other ? { other: own(other) } : {}) };
}

/** By rows that lie evenly among all. */
async function guess(rows: readonly Sample[], look: () => Promise<void>): Promise<UnreadDataset["about"]> {
  const count = Math.min(rows.length, GUESSED_BY);
  let [tokens, targets] = [0, 0];
  for (let i = 0; i < count; i++) {
    await look();
    const { ids, mask, other } = rows[Math.floor((i * rows.length) / count)]!;
    for (const of of other ? [{ ids, mask }, other] : [{ ids, mask }]) {
      tokens += of.ids.length - 1;
      targets += sum(of.mask.subarray(1));
    }
  }
  return { tokens: tokens / count, targets: targets / count };
}

/** Whether data that was not read is this, which is. */
export const isSame = (unread: UnreadDataset, read: Dataset): boolean =>
  areSame(unread.train, read.train) &&
  unread.eval.length === read.eval.length &&
  unread.eval.every((row, i) => isSameRow(row, read.eval[i]!));

/** As many rows of each file on the same lines, and the same where they are known. */
function areSame(unread: readonly Sample[], read: readonly Sample[]): boolean {
  const [before, after] = [packedOf(unread)!, packedOf(read)];
  if (!after || before.files.length !== after.files.length || unread.length !== read.length) return false;
  return before.files.every((of, i) => {
    const is = after.files[i]!;
    if (of.file !== is.file || !bytesOf(of.lines).equals(bytesOf(is.lines))) return false;
    return [...of.unread!.latest].every(([row, sample]) => isSameRow(sample, sampleOf(is, row)));
  });
}

const isSameRow = (one: Sample, other: Sample): boolean =>
  isSameSequence(one, other) &&
  (one.other === undefined) === (other.other === undefined) &&
  (!one.other || isSameSequence(one.other, other.other!));

const isSameSequence = (one: Sequence, other: Sequence): boolean =>
  one.ids.length === other.ids.length && one.ids.every((id, i) => id === other.ids[i] && one.mask[i] === other.mask[i]);

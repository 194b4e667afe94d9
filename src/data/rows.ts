// Tokenised rows in a few large arrays: a million rows as objects of their own would take several times their tokens, and could
// not be handed from a thread to another without a copy. To those who read them they are an array of samples.

import { invariant } from "../base/errors.ts";
import type { Source } from "./jsonl.ts";

/** One sequence: mask[i] = 1 where token i is to be predicted from those before it. */
export type Sequence = { readonly ids: Int32Array; readonly mask: Uint8Array };

/**
 * A row; of preferences it has another answer, of KTO a label (schedule/pack.ts says what they mean), of prompts its columns as
 * JSON, for rewards.
 */
export type Sample = Sequence & {
  readonly source: Source;
  readonly other?: Sequence;
  readonly label?: boolean;
  readonly columns?: string;
};

/** Tokens of a piece of memory: the first is small, for small files, and no sequence lies in two. */
const [FIRST, LARGEST] = [1 << 12, 1 << 20];
/** Numbers of a sequence in the index: its piece, its place there and its length. */
const WIDTH = 3;
/** The label of a row that has none. */
export const UNLABELLED = 2;

/** The rows of one file but for their tokens; `index` has two sequences a row where `paired`. */
export type Packed = {
  readonly file: string;
  readonly paired: boolean;
  readonly index: Int32Array;
  readonly lines: Int32Array;
  readonly labels: Uint8Array;
  /** Of prompts: the columns of all rows in UTF-8, and where each ends. */
  readonly columns?: { readonly bytes: Uint8Array; readonly ends: Float64Array };
};
/** The rows of one file; `mapped`: the file of the cache that they lie in; `unread`: what reads them, if that is yet to be. */
export type PackedFile = Packed & {
  readonly pieces: readonly Sequence[];
  readonly mapped?: string;
  readonly unread?: UnreadRows;
};
/** Rows that are yet to be read, but for their lines: `index`, `labels` and `pieces` are empty. */
export type UnreadRows = {
  readonly read: (row: number) => Sample;
  /** Of those that were read lately, by row. */
  readonly latest: ReadonlyMap<number, Sample>;
};
/** Rows of files, one after the other; of these `chosen`, where it is there. */
export type PackedRows = { readonly files: readonly PackedFile[]; readonly chosen: Int32Array | null };

/** A typed array that grows, by half of itself; what is not set is 0. */
export class Numbers<
  T extends Int32Array<ArrayBuffer> | Uint8Array<ArrayBuffer> | Float64Array<ArrayBuffer> = Int32Array<ArrayBuffer>,
> {
  #all: T;
  length = 0;
  constructor(private readonly make: (length: number) => T) {
    this.#all = make(64);
  }
  push(value: number): void {
    this.set(this.length, value);
  }
  set(index: number, value: number): void {
    if (index >= this.#all.length) {
      const larger = this.make(Math.max(index + 1, this.#all.length + (this.#all.length >> 1)));
      larger.set(this.#all);
      this.#all = larger;
    }
    this.#all[index] = value;
    if (index >= this.length) this.length = index + 1;
  }
  at(index: number): number {
    return this.#all[index] ?? 0;
  }
  /** A view, until it grows. */
  get values(): T {
    return this.#all.subarray(0, this.length) as T;
  }
}

export const ints = (length: number): Int32Array<ArrayBuffer> => new Int32Array(length);

const NOTHING: Sequence = { ids: new Int32Array(), mask: new Uint8Array() };

/** Packs the rows of one file. All rows have another sequence, or none. With `spill`, full pieces go there and are not kept. */
export class RowPacker {
  readonly #pieces: Sequence[] = [];
  readonly #index = new Numbers(ints);
  readonly #lines = new Numbers(ints);
  readonly #labels = new Numbers((length) => new Uint8Array(length));
  readonly #columns: Uint8Array[] = [];
  #columnBytes = 0;
  /** Tokens that pieces in memory have room for. */
  #tokens = 0;
  #used = 0;
  #largest = FIRST / 2;
  #paired = false;

  constructor(
    private readonly file: string,
    private readonly spill: ((piece: Sequence) => void) | null = null,
  ) {}

  get length(): number {
    return this.#lines.length;
  }

  /** Bytes that the rows take. */
  get bytes(): number {
    return 5 * this.#tokens + 4 * this.#index.length + 5 * this.length + this.#columnBytes;
  }

  push({ ids, mask, other, label, columns, source }: Sample): void {
    invariant(this.length === 0 || this.#paired === (other !== undefined), `${this.file}: rows of one and of two sequences`);
    this.#paired = other !== undefined;
    this.#put(ids, mask);
    if (other) this.#put(other.ids, other.mask);
    this.#lines.push(source.line);
    this.#labels.push(label === undefined ? UNLABELLED : Number(label));
    if (columns === undefined) return;
    this.#columns.push(new TextEncoder().encode(columns));
    this.#columnBytes += this.#columns.at(-1)!.length;
  }

  get rows(): readonly Sample[] {
    const packed = this.#packed;
    const own = { index: packed.index.slice(), lines: packed.lines.slice(), labels: packed.labels.slice() };
    return unpack({ files: [{ ...packed, ...own, pieces: this.#pieces }], chosen: null });
  }

  /** Spills the last piece, too; what is left to know of the rows. */
  finish(): Packed {
    this.#spill();
    return this.#packed;
  }

  get #packed(): Packed {
    const [index, lines, labels] = [this.#index.values, this.#lines.values, this.#labels.values];
    const own = { file: this.file, paired: this.#paired, index, lines, labels };
    if (this.#columns.length === 0) return own;
    let end = 0;
    const ends = Float64Array.from(this.#columns, ({ length }) => (end += length));
    return { ...own, columns: { bytes: new Uint8Array(Buffer.concat(this.#columns)), ends } };
  }

  #spill(): void {
    const piece = this.#pieces.at(-1);
    if (!this.spill || !piece) return;
    this.spill({ ids: piece.ids.subarray(0, this.#used), mask: piece.mask.subarray(0, this.#used) });
    this.#pieces[this.#pieces.length - 1] = NOTHING;
    this.#tokens -= piece.ids.length;
  }

  #put(ids: Int32Array, mask: Uint8Array): void {
    let piece = this.#pieces.at(-1);
    if (!piece || this.#used + ids.length > piece.ids.length) {
      const size = Math.max(ids.length, Math.min(LARGEST, 2 * this.#largest));
      this.#largest = size;
      this.#spill();
      piece = { ids: new Int32Array(size), mask: new Uint8Array(size) };
      this.#pieces.push(piece);
      this.#tokens += size;
      this.#used = 0;
    }
    piece.ids.set(ids, this.#used);
    piece.mask.set(mask, this.#used);
    for (const number of [this.#pieces.length - 1, this.#used, ids.length]) this.#index.push(number);
    this.#used += ids.length;
  }
}

const known = new WeakMap<readonly unknown[], PackedRows>();

/** Rows as they are packed; undefined for those that did not come from here. */
export const packedOf = (rows: readonly unknown[]): PackedRows | undefined => known.get(rows);

/** Whether they are read when they are asked for: all of them at once would be read one by one. */
export const isUnread = (rows: readonly unknown[]): boolean =>
  packedOf(rows)?.files.some(({ unread }) => unread !== undefined) ?? false;

/** The rows as they can be handed to another thread. They must have come from here. */
export function pack(rows: readonly Sample[]): PackedRows {
  if (rows.length === 0) return { files: [], chosen: null };
  const packed = packedOf(rows);
  invariant(packed, "rows that are not packed");
  return packed;
}

/** The buffers of packed rows, each once: what is handed over without a copy. */
export function buffersOf(all: readonly PackedRows[]): ArrayBuffer[] {
  const views = all.flatMap(({ files, chosen }) => [
    ...files.flatMap(({ pieces, index, lines, labels, columns }) => [
      ...pieces.flatMap(({ ids, mask }) => [ids, mask]),
      index,
      lines,
      labels,
      ...(columns ? [columns.bytes, columns.ends] : []),
    ]),
    ...(chosen ? [chosen] : []),
  ]);
  return [...new Set(views.map(({ buffer }) => buffer as ArrayBuffer))];
}

/** Packed rows for another thread, which opens by `opened` what lies in files. */
export const sendable = ({ files, chosen }: PackedRows): PackedRows => ({
  files: files.map((of) => (of.mapped === undefined ? of : { ...of, ...empty() })),
  chosen,
});
const empty = () => ({ pieces: [], index: new Int32Array(), lines: new Int32Array(), labels: new Uint8Array() });

export const opened = ({ files, chosen }: PackedRows, map: (path: string, file: string) => PackedFile): PackedRows => ({
  files: files.map((of) => (of.mapped === undefined ? of : map(of.mapped, of.file))),
  chosen,
});

/** Packed rows as an array of samples, which are made when they are read. */
export function unpack(packed: PackedRows): readonly Sample[] {
  const { files, chosen } = packed;
  const starts = [0];
  for (const { lines } of files) starts.push(starts.at(-1)! + lines.length);
  const rows = lazyArray(chosen?.length ?? starts.at(-1)!, (i) => {
    const row = chosen ? chosen[i]! : i;
    let at = 0;
    while (row >= starts[at + 1]!) at++;
    return sampleOf(files[at]!, row - starts[at]!);
  });
  known.set(rows, packed);
  return rows;
}

/**
 * Samples between two collections of garbage. The collector counts a mapped file as memory, and lets as much garbage come
 * together before it begins: the views of 10 million rows took 1.7 GiB, and as long again to make.
 */
const COLLECTED = 1 << 18;
let made = 0;

export function sampleOf(of: PackedFile, row: number): Sample {
  const { file, paired, pieces, index, lines, labels, columns, unread } = of;
  if (unread) return unread.read(row);
  if (++made % COLLECTED === 0) Bun.gc(true);
  const sequence = (number: number): Sequence => {
    const [piece, from, length] = [index[WIDTH * number]!, index[WIDTH * number + 1]!, index[WIDTH * number + 2]!];
    const { ids, mask } = pieces[piece]!;
    return { ids: ids.subarray(from, from + length), mask: mask.subarray(from, from + length) };
  };
  const own = sequence(paired ? 2 * row : row);
  const label = labels[row]!;
  return {
    ...own,
    ...(paired ? { other: sequence(2 * row + 1) } : {}),
    ...(label === UNLABELLED ? {} : { label: label === 1 }),
    ...(columns
      ? { columns: new TextDecoder().decode(columns.bytes.subarray(columns.ends[row - 1] ?? 0, columns.ends[row])) }
      : {}),
    source: { file, line: lines[row]! },
  };
}

/** The rows of several files, one after the other. */
export function joined(lists: readonly (readonly Sample[])[]): readonly Sample[] {
  if (lists.length === 0) return [];
  if (lists.length === 1) return lists[0]!;
  const all = lists.map(pack);
  invariant(
    all.every(({ chosen }) => chosen === null),
    "rows are chosen after they are joined",
  );
  return unpack({ files: all.flatMap(({ files }) => files), chosen: null });
}

/** Those of the rows whose numbers `is` says yes to. */
export function chosenOf(rows: readonly Sample[], is: (row: number) => boolean): readonly Sample[] {
  const { files, chosen } = pack(rows);
  invariant(chosen === null, "rows are chosen once");
  const numbers = new Int32Array(rows.length);
  let count = 0;
  for (let row = 0; row < rows.length; row++) if (is(row)) numbers[count++] = row;
  return unpack({ files, chosen: numbers.slice(0, count) });
}

/** An array, for reading alone, whose elements are made when they are asked for. */
export function lazyArray<T>(length: number, at: (index: number) => T): readonly T[] {
  const indexOf = (key: string | symbol): number | null => {
    const index = typeof key === "string" ? Number(key) : Number.NaN;
    return Number.isInteger(index) && index >= 0 && index < length ? index : null;
  };
  const iterate = function* (): Generator<T> {
    for (let i = 0; i < length; i++) yield at(i);
  };
  // An array's own would ask for each element by a text.
  const entries = function* (): Generator<[number, T]> {
    for (let i = 0; i < length; i++) yield [i, at(i)];
  };
  const map = <U>(make: (value: T, index: number, all: readonly T[]) => U): U[] => {
    const made: U[] = [];
    for (let i = 0; i < length; i++) made.push(make(at(i), i, array));
    return made;
  };
  const handler: ProxyHandler<T[]> = {
    get(target, key) {
      if (key === "length") return length;
      if (key === Symbol.iterator) return iterate;
      if (key === "entries") return entries;
      if (key === "map") return map;
      const index = indexOf(key);
      return index === null ? Reflect.get(target, key) : at(index);
    },
    has: (target, key) => indexOf(key) !== null || Reflect.has(target, key),
  };
  const array: readonly T[] = new Proxy<T[]>([], handler);
  return array;
}

// The rows of one file: read, tokenised and cut; or taken from the cache, where the same bytes were tokenised in the same way.

import { statfsSync, statSync, utimesSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { wallTime } from "../base/clock.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { rowKindOf } from "../objectives/registry.ts";
import { type DataFile, formOf } from "./data-file.ts";
import type { DatasetRecipe } from "./dataset.ts";
import { stringifyJson } from "./json.ts";
import { type Notice, type NoticeKind, noticeText } from "./notices.ts";
import { type FileReading, packRows } from "./pack-rows.ts";
import { RowPacker, type Sample, unpack } from "./rows.ts";
import { checkTokenFile, mapTokens, TokenFileWriter } from "./token-file.ts";

export type FileRows = {
  readonly samples: readonly Sample[];
  readonly rows: number;
  readonly truncated: number;
  readonly dropped: number;
  readonly notices: readonly Notice[];
};

/** Where rows are kept as tokens. */
export type TokenCache = {
  readonly folder: string;
  /** Names the program and the tokenizer: other ones might make other tokens of the same rows. */
  readonly maker: string;
  /** Bytes of a file that is worth it. */
  readonly leastBytes: number;
};

/** Where rows go as they are tokenised. */
type Keep = { readonly key: string; readonly path: string; readonly writer: TokenFileWriter };

/** Bytes of the cache for each of a file of rows, at most: rows are words before they are tokens of five bytes. */
const GROWTH = 8;
const MARGIN = 1 << 30;

const known = v.object({
  rows: v.number(),
  truncated: v.number(),
  dropped: v.number(),
  notices: v.array(v.object({ kind: v.string(), rows: v.number(), turns: v.number(), example: v.string() })),
});

/** A file's rows; `form`: all that decides what becomes of them besides the file, its tokenizer and the chat template. */
export function cachedRows(from: FileReading, form: readonly unknown[], cache: TokenCache | null): FileRows {
  const { file, tokenizer, vocab, most } = from;
  const isKept = rowKindOf(from.recipe.objective) !== "prompt"; // the columns of prompts are no tokens
  if (cache === null || !isKept || file.hash === undefined || !isWorth(file, cache)) return readFile(from, null);
  const parts = [cache.maker, file.hash, formOf(file.name), vocab, most, ...templatesOf(tokenizer), ...form];
  const key = new Bun.CryptoHasher("sha256").update(stringifyJson(parts)!).digest("hex");
  const path = join(cache.folder, key);
  const found = checkTokenFile(path, key);
  const more = found === null ? null : v.safeParse(known, found.more);
  if (found !== null && more?.success) {
    const now = wallTime() / 1000;
    utimesSync(path, now, now); // what is used stays
    const notices = more.output.notices.map((notice) => renamed(notice as Notice, found.file, file.name));
    return { ...more.output, samples: unpack({ files: [mapTokens(path, file.name)], chosen: null }), notices };
  }
  try {
    using writer = new TokenFileWriter(path);
    return readFile(from, { key, path, writer });
  } catch (error) {
    if (!(error instanceof RunError)) throw error;
    log(1, () => `rows are not kept as tokens: ${textOf(error)}`);
    return readFile(from, null); // a full disk keeps no run from its rows
  }
}

const templatesOf = ({ chatTemplate, toolUse }: FileReading["tokenizer"]) => [chatTemplate, toolUse?.chatTemplate ?? null];

/** Whether the rows of a file are kept as tokens. */
export function isWorth({ path }: DataFile, { folder, leastBytes }: TokenCache): boolean {
  const { size } = statSync(path);
  const { bavail, bsize } = statfsSync(folder);
  return size >= leastBytes && bavail * bsize > GROWTH * size + MARGIN;
}

/** The same rows may come from a file of another name. */
const renamed = (notice: Notice, before: string, now: string): Notice =>
  notice.example.startsWith(before) ? { ...notice, example: now + notice.example.slice(before.length) } : notice;

/** The first `most` rows of a file; null: all. */
function readFile(from: FileReading, keep: Keep | null): FileRows {
  const { file: of, recipe } = from;
  const { name: file } = of;
  const kind = rowKindOf(recipe.objective);
  const packer = new RowPacker(file, kind === "labelled" ? null : (keep?.writer.piece ?? null));
  const { counts, notices } = packRows(from, packer);
  if (packer.length === 0) throw nothingIn(file, counts.rows, notices, recipe);
  if (kind === "paraphrased" && packer.length < 2) throw oneRow(file, recipe, "CIT tells paraphrases apart");
  const whole = kind === "labelled" ? mismatched(packer.rows, file, recipe, keep) : packer;
  if (!keep) return { samples: whole.rows, ...counts, notices };
  keep.writer.finish(keep.key, whole.finish(), { ...counts, notices });
  return { samples: unpack({ files: [mapTokens(keep.path, file)], chosen: null }), ...counts, notices };
}

/** KTO's reference point is measured on answers to other prompts: each row gets the next one's, and the last the first's. */
function mismatched(samples: readonly Sample[], file: string, recipe: DatasetRecipe, keep: Keep | null): RowPacker {
  if (samples.length < 2) throw oneRow(file, recipe, "KTO measures answers to other prompts");
  const { maxLength } = recipe;
  const answerFrom = ({ mask }: Sample) => mask.indexOf(1);
  const packer = new RowPacker(file, keep?.writer.piece ?? null);
  for (const [i, sample] of samples.entries()) {
    const next = samples[(i + 1) % samples.length]!;
    const [prompt, answer] = [answerFrom(sample), answerFrom(next)];
    const join = <T extends Int32Array | Uint8Array>(a: T, b: T, type: { from(values: Iterable<number>): T }): T =>
      type.from([...a.subarray(0, prompt), ...b.subarray(answer)].slice(0, maxLength));
    const other = { ids: join(sample.ids, next.ids, Int32Array), mask: join(sample.mask, next.mask, Uint8Array) };
    packer.push({ ...sample, other });
  }
  return packer;
}

const oneRow = (file: string, { name }: DatasetRecipe, why: string): RequestError =>
  new RequestError("data.file", `${file}: has one row`, `adapter '${name}' needs two or more: ${why}`);

function nothingIn(file: string, rows: number, notices: readonly Notice[], { name }: DatasetRecipe): RequestError {
  const why = notices.filter(({ kind }) => DROPS.includes(kind)).map(noticeText);
  return new RequestError(
    "data.file",
    `${file}: ${rows === 0 ? "has no row" : `has no usable row: ${why.join("; ")}`}`,
    `adapter '${name}' needs at least one row with something to learn`,
  );
}

/** Why rows are dropped. */
export const DROPS: readonly NoticeKind[] = ["too long", "nothing to learn", "same answers"];

// What an adapter of PEFT's changes of the embedding and of the output head: low-rank factors, rows of single tokens
// (trainable_token_indices), or all of it (modules_to_save). Both are tables [vocab, hidden].

import { invariant, RequestError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type PatternTable, patternValue } from "../base/targeting.ts";
import { familyOf } from "../families/registry.ts";
import { type TableModules, tableModules } from "../families/tensors.ts";
import type { MergeRows } from "../methods/definition.ts";
import type { TableFactor } from "../methods/layout.ts";
import { scaleOf } from "../methods/placement.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import { sharesRows, type Table, type Tables, type TableTensor, tableWidth } from "../methods/tables.ts";
import type { BaseModelFiles } from "./basemodel.ts";
import { toBf16, toF32 } from "./convert.ts";
import type { JsonObject } from "./json.ts";
import type { SafetensorsFile, TensorData } from "./safetensors.ts";

/** Of a table: first the whole of it, then some rows, then a product b a that is added. Null for what there is none of. */
export type TableChange = {
  readonly whole: Float32Array | null;
  readonly rows: { readonly indices: readonly number[]; readonly values: Float32Array } | null;
  /** a f32[rank, hidden], b f32[vocab, rank]. */
  readonly product: {
    readonly a: Float32Array;
    readonly b: Float32Array;
    readonly rank: number;
    readonly scale: number;
  } | null;
};
type Kind = keyof TableModules;
/** The changes of an adapter; null where it leaves a table alone. */
export type TableChanges = Readonly<Record<Kind, TableChange | null>>;

/** Keys of a config that concern tables alone. */
export const TABLE_KEYS: readonly string[] = ["modules_to_save", "trainable_token_indices"];
const MERGE_ALONE =
  "mlora merges whole tables of an adapter into its base model (mlora export), and does not train, continue or generate with them; merge it, or train it with embed_tokens or lm_head among target_modules, or with trainable_token_indices";

const BASE = "base_model.model.";

/** Names of the tensors of an adapter's file that belong to a table. */
export const tableTensors = (file: SafetensorsFile, modules: TableModules): string[] =>
  [...file.tensors.keys()].filter((name) => Object.values(modules).some((module) => name.startsWith(`${BASE}${module}.`)));

type Source = {
  readonly file: SafetensorsFile;
  readonly config: JsonObject;
  /** Of the config, for messages. */
  readonly path: string;
  readonly spec: ModelSpec;
  readonly modules: TableModules;
  /** Null: copies of the base model's tables in the file are not compared. */
  readonly base: BaseOfAdapter | null;
};
/** How to open the files of the base model; `merges` allows what can only be merged. */
export type BaseOfAdapter = { readonly open: () => BaseModelFiles; readonly merges?: true };

/** Reads the changes of both tables. Throws a RequestError, `peft.config` or `peft.tensors`, for what is not understood. */
export function readTables(from: Source): TableChanges {
  const { file, config, path, modules } = from;
  const saved = listOf(config, "modules_to_save", path);
  const other = saved.find((name) => !Object.values(modules).some((module) => isEnd(module, name)));
  if (other !== undefined)
    throw new RequestError("peft.kind", `${path}: modules_to_save names ${other}`, "only embedding and output head are read");
  const known = new Set<string>();
  const changes = { embedding: readTable(from, "embedding", known), head: readTable(from, "head", known) };
  const unknown = tableTensors(file, modules).find((name) => !known.has(name));
  if (unknown !== undefined) throw new RequestError("peft.tensors", `${file.path}: ${unknown} is not known`);
  if (from.base?.merges) return changes;
  for (const [kind, change] of Object.entries(changes) as [Kind, TableChange | null][])
    if (change?.whole || (change?.rows && change.product))
      throw new RequestError(
        "peft.kind",
        `${path} has ${change.whole ? "a whole copy" : "factors and rows of single tokens"} of ${modules[kind]}`,
        MERGE_ALONE,
      );
  return changes;
}

const isEnd = (module: string, name: string): boolean => module === name || module.endsWith(`.${name}`);

function listOf(config: JsonObject, key: string, path: string): readonly string[] {
  const value = config[key] ?? [];
  if (Array.isArray(value) && value.every((name) => typeof name === "string")) return value;
  throw new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(value)}, expected a list of modules`);
}

function readTable(from: Source, kind: Kind, known: Set<string>): TableChange | null {
  const { file, spec, modules, config } = from;
  const { vocab, hidden } = spec;
  const module = modules[kind];
  const read = (end: string, shape: readonly number[]): Float32Array | null => {
    const name = `${BASE}${module}${end}`;
    const entry = file.tensors.get(name);
    if (!entry) return null;
    known.add(name);
    if (`${entry.shape}` !== `${shape}`) throw wrongShape(from, name, entry.shape, shape);
    const raw = new Uint8Array(entry.bytes);
    file.readInto(name, raw);
    if (!entry.dtype) throw new RequestError("peft.tensors", `${file.path}: ${name} is ${entry.type}`);
    const values = toF32(raw, entry.dtype);
    if (!values.every(Number.isFinite))
      throw new RequestError("peft.values", `${file.path}: ${name} has values that are no finite numbers`);
    return values;
  };
  for (const end of [".base_layer.weight", ".token_adapter.base_layer.weight"]) {
    const copy = read(end, [vocab, hidden]);
    if (copy) checkCopy(from, kind, copy, `${BASE}${module}${end}`);
  }
  if (config["use_dora"] === true && file.tensors.has(`${BASE}${module}.lora_magnitude_vector`))
    throw new RequestError(
      "peft.kind",
      `${from.path}: use_dora is true with factors of ${module}`,
      "DoRA is read on linears of layers alone",
    );
  const indices = tokenIndices(from, kind);
  const rank = placeOf(from, module, "rank_pattern") ?? Number(config["r"]);
  const [aName, bName] =
    kind === "embedding" ? [".lora_embedding_B", ".lora_embedding_A"] : [".lora_A.weight", ".lora_B.weight"];
  const isTurned = kind === "embedding";
  const a = read(aName, isTurned ? [hidden, rank] : [rank, hidden]);
  const b = read(bName, isTurned ? [rank, vocab] : [vocab, rank]);
  if ((a === null) !== (b === null))
    throw new RequestError("peft.tensors", `${file.path}: ${BASE}${module}${a ? bName : aName} is missing`);
  const rows = indices && read(".token_adapter.trainable_tokens_delta", [indices.length, hidden]);
  const change: TableChange = {
    whole: read(".weight", [vocab, hidden]),
    rows: rows && { indices: indices!, values: rows },
    product:
      a && b
        ? {
            ...(isTurned ? { a: turned(a, hidden, rank), b: turned(b, rank, vocab) } : { a, b }),
            rank,
            scale: scaleOf({
              rank,
              alpha: placeOf(from, module, "alpha_pattern") ?? Number(config["lora_alpha"]),
              rslora: config["use_rslora"] === true,
              method: "lora",
            }),
          }
        : null,
  };
  return change.whole || change.rows || change.product ? change : null;
}

/** [columns, rows] of a matrix [rows, columns]. */
function turned(values: Float32Array, rows: number, columns: number): Float32Array<ArrayBuffer> {
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) out[column * rows + row] = values[row * columns + column]!;
  return out;
}

const placeOf = ({ config }: Source, module: string, key: string): number | null =>
  patternValue((config[key] ?? {}) as PatternTable, module);

/** The tokens whose rows the file has; of a list, those of the embedding. Null for none. */
function tokenIndices({ config, path, spec, modules, file }: Source, kind: Kind): readonly number[] | null {
  const given = config["trainable_token_indices"] ?? null;
  const wrong = () =>
    new RequestError(
      "peft.config",
      `${path}: trainable_token_indices is ${JSON.stringify(given).slice(0, 200)}, expected different tokens from 0 to ${spec.vocab - 1}`,
    );
  if (given !== null && typeof given !== "object") throw wrong();
  if (given === null || !file.tensors.has(`${BASE}${modules[kind]}.token_adapter.trainable_tokens_delta`)) return null;
  const isList = Array.isArray(given);
  const named = Object.entries(isList ? {} : given).find(([name]) => isEnd(modules[kind], name))?.[1];
  const found: unknown = isList && kind === "embedding" ? given : named;
  const isToken = (id: unknown) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < spec.vocab;
  if (Array.isArray(found) && found.every(isToken) && new Set(found).size === found.length) return found as number[];
  throw wrong();
}

function wrongShape({ file }: Source, name: string, found: readonly number[], expected: readonly number[]): RequestError {
  const isTable = /(base_layer|embed_tokens|lm_head)\.weight$/.test(name);
  return new RequestError(
    "peft.tensors",
    `${file.path}: ${name} is [${found}], expected [${expected}]`,
    isTable && found[0] !== expected[0]
      ? "it was trained on a base model with another vocabulary: give --base a folder where that model was saved"
      : undefined,
  );
}

/** PEFT puts a copy of what it adapts into the file, which must be the base model's, or the base model's in bf16. */
function checkCopy({ base: opened, spec, file }: Source, kind: Kind, copy: Float32Array, name: string): void {
  if (opened === null) return;
  using base = opened.open();
  const { embedding, head } = familyOf(spec).tensors;
  const of = kind === "head" && !spec.tiedEmbeddings ? head : embedding;
  const { shape } = base.tensor(of);
  const piece = Math.max(1, Math.floor((1 << 22) / spec.hidden)) * spec.hidden;
  for (let at = 0; at < sizeOf(shape); at += piece) {
    const own = new Float32Array(new ArrayBuffer(4 * Math.min(piece, sizeOf(shape) - at)));
    base.read(of, new Uint8Array(own.buffer), 4 * at, "f32");
    const theirs = copy.subarray(at, at + own.length);
    if (own.every((value, i) => value === theirs[i])) continue;
    const [mine, other] = [toBf16(own), toBf16(theirs.slice())];
    if (mine.every((value, i) => value === other[i])) continue;
    throw new RequestError(
      "peft.tensors",
      `${file.path}: ${name} is not the base model's ${of}`,
      "it was trained on another base model, or on one that was changed first: give --base that one",
    );
  }
}

/** What an adapter trains of the tables, by its changes of them; of tied tables the rows of tokens are in both. */
export function tablesOf({ tiedEmbeddings }: ModelSpec, { embedding, head }: TableChanges): Tables | null {
  const of = (change: TableChange | null): Table | null => {
    if (change?.product) return { rank: change.product.rank, scale: change.product.scale };
    return change?.rows ? { tokens: change.rows.indices } : null;
  };
  const [first, own] = [of(embedding), of(head)];
  const last = own ?? (tiedEmbeddings && first && "tokens" in first ? first : null);
  return first || last ? { ...(first ? { embedding: first } : {}), ...(last ? { head: last } : {}) } : null;
}

/** A tensor of a table that an adapter changes. */
export function tableTensor({ embedding, head }: TableChanges, kind: Kind, tensor: TableTensor): Float32Array {
  const change = kind === "head" ? (head ?? embedding) : embedding;
  const values = tensor === "rows" ? change?.rows?.values : change?.product?.[tensor === "A" ? "a" : "b"];
  invariant(values, `an adapter without ${tensor} of its ${kind}`);
  return values;
}

/** The tensors of tables as PEFT's files have them; of tied tables rows of tokens are written once. */
export function writtenTables(
  spec: Pick<ModelSpec, "family" | "tower" | "tiedEmbeddings">,
  tables: Tables,
  factors: readonly TableFactor[],
): TensorData[] {
  const modules = tableModules(spec);
  return factors.flatMap(({ linear: kind, factor, values }) => {
    if (kind === "head" && sharesRows(spec, tables)) return [];
    const table = tables[kind]!;
    const width = tableWidth(table);
    const at = `${BASE}${modules[kind]}`;
    const other = values.length / width;
    const tensor = (end: string, shape: readonly number[], data = values) => [
      { name: `${at}.${end}`, dtype: "f32" as const, shape: [...shape], data },
    ];
    if (factor === "rows") return tensor("token_adapter.trainable_tokens_delta", [width, other]);
    if (kind === "head") return tensor(`lora_${factor}.weight`, factor === "A" ? [width, other] : [other, width]);
    return factor === "A"
      ? tensor("lora_embedding_B", [other, width], turned(values, width, other))
      : tensor("lora_embedding_A", [width, other], turned(values, other, width));
  });
}

/** Changes rows of a table of this width. */
export function mergeTable({ whole, rows, product }: TableChange, width: number): MergeRows {
  const add =
    product && DEFINITIONS.lora.merge({ ...product, width, tensor: (name) => (name === "A" ? product.a : product.b) });
  return (values, first) => {
    if (whole) values.set(whole.subarray(first * width, first * width + values.length));
    for (const [i, index] of (rows?.indices ?? []).entries())
      if (index >= first && index < first + values.length / width)
        values.set(rows!.values.subarray(i * width, (i + 1) * width), (index - first) * width);
    add?.(values, first);
  };
}

/**
 * Whether embedding and head are still one table with these changes. PEFT trains the rows of tied tokens in both, and copies or
 * factors of one table leave the other as it was.
 */
export function areTied({ tiedEmbeddings }: ModelSpec, { embedding, head }: TableChanges): boolean {
  if (!tiedEmbeddings) return false;
  if (head === null) return embedding === null || (embedding.whole === null && embedding.product === null);
  return (
    embedding !== null && JSON.stringify(shapeOf(embedding)) === JSON.stringify(shapeOf(head)) && sameValues(embedding, head)
  );
}

const partsOf = ({ whole, rows, product }: TableChange) => [
  whole,
  rows?.values ?? null,
  product?.a ?? null,
  product?.b ?? null,
];
const shapeOf = (change: TableChange) => [
  partsOf(change).map((part) => part?.length),
  change.rows?.indices,
  change.product?.scale,
];

function sameValues(one: TableChange, other: TableChange): boolean {
  const theirs = partsOf(other);
  return partsOf(one).every((part, at) => part === null || part.every((value, i) => value === theirs[at]![i]));
}

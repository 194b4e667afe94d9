// Data of a request as rows of the engine, and the engine's log-probabilities as those of the data.

import { range } from "../../base/shape.ts";
import { count, counted } from "../../base/units.ts";
import type { PolicyLoss, Row } from "../../session/primitives/primitives.ts";
import { badRequest } from "../errors.ts";
import type { Datum, DatumLogProbs, ForwardBackward, Tensor } from "./messages.ts";

/** Null: cross-entropy by the weights of its rows. */
export type Loss = PolicyLoss | null;

type Settings = Readonly<Record<string, number>>;
type LossOf = { readonly defaults: Settings; readonly loss: (settings: Settings) => Loss };
/** Names and defaults of Tinker's. */
const bounds = (low: number, high: number): Settings => ({ clip_low_threshold: low, clip_high_threshold: high });
const clipped = (name: "ppo" | "cispo", defaults: Settings): LossOf => ({
  defaults,
  loss: (of) => ({ name, low: of["clip_low_threshold"]!, high: of["clip_high_threshold"]! }),
});
const LOSSES = new Map<string, LossOf>([
  ["cross_entropy", { defaults: {}, loss: () => null }],
  ["importance_sampling", { defaults: {}, loss: () => ({ name: "importance_sampling" }) }],
  ["ppo", clipped("ppo", bounds(0.8, 1.2))],
  ["cispo", clipped("cispo", bounds(0, 4))],
  ["dro", { defaults: { beta: 0.05 }, loss: ({ beta }) => ({ name: "dro", beta: beta! }) }],
]);

/** The loss of a request. Throws an ApiError. */
export function lossOf({ loss, config }: Pick<ForwardBackward, "loss" | "config">): Loss {
  const found = LOSSES.get(loss);
  const names = [...LOSSES.keys()].join(", ");
  if (!found) throw badRequest(`The loss '${loss}' is not served, expected one of ${names}.`, "loss_fn");
  const settings = { ...found.defaults };
  for (const [key, value] of config) {
    if (!Object.hasOwn(found.defaults, key)) throw badRequest(`The loss '${loss}' has no setting '${key}'.`, "loss_fn_config");
    if (typeof value !== "number" || !Number.isFinite(value))
      throw badRequest(`The setting '${key}' of the loss '${loss}' is ${value}, expected a finite number.`, "loss_fn_config");
    settings[key] = value;
  }
  return found.loss(settings);
}

/** A datum's targets as rows: one, or one for each column of targets of two dimensions. */
export type DatumRows = { readonly rows: readonly Row[]; readonly width: number | null };

/** Throws ApiErrors that name the datum. */
export function rowsOf(data: readonly Datum[], loss: Loss): DatumRows[] {
  if (data.length === 0) throw badRequest("The request has no data.", "data");
  return data.map((datum, i) => {
    try {
      return loss ? policyRows(datum) : weightedRows(datum);
    } catch (error) {
      throw error instanceof DatumFault ? badRequest(`Datum ${i}: ${error.message}.`, "data") : error;
    }
  });
}

/** What is wrong with a datum, or with a tensor. */
export class DatumFault extends Error {}

function weightedRows({ tokens, inputs }: Datum): DatumRows {
  checkInputs(inputs, ["target_tokens", "weights"], ["target_tokens"]);
  const targets = denseOf(inputs.get("target_tokens")!, "target_tokens", "int64", tokens.length);
  const given = inputs.get("weights");
  const weights = given ? denseOf(given, "weights", "float32", tokens.length) : null;
  if (weights && weights.width !== targets.width) throw new DatumFault("weights have another shape than target_tokens");
  const rows = range(targets.columns).map((column): Row => {
    const of = weights ? shifted(weights.column(column)) : new Float32Array(tokens.length + 1).fill(1, 1);
    const mask = Uint8Array.from(of, (weight) => Number(weight !== 0));
    const learned = mask.includes(1, 1);
    return {
      ...sequenceOf(tokens, targets.column(column)),
      mask: learned ? mask : mask.fill(1),
      weights: of,
      isScored: learned,
    };
  });
  return { rows, width: targets.width };
}

function policyRows({ tokens, inputs }: Datum): DatumRows {
  const names = ["target_tokens", "logprobs", "advantages"];
  checkInputs(inputs, names, names);
  const column = (name: string, dtype: Tensor["dtype"]) => {
    const { width, column } = denseOf(inputs.get(name)!, name, dtype, tokens.length);
    if (width !== null) throw new DatumFault(`${name} have two dimensions, expected one`);
    return column(0);
  };
  const sampled = { logProbs: shifted(column("logprobs", "float32")), advantages: shifted(column("advantages", "float32")) };
  const mask = new Uint8Array(tokens.length + 1).fill(1);
  return { rows: [{ ...sequenceOf(tokens, column("target_tokens", "int64")), mask, sampled }], width: null };
}

function checkInputs(inputs: Datum["inputs"], known: readonly string[], needed: readonly string[]): void {
  for (const name of inputs.keys())
    if (!known.includes(name)) throw new DatumFault(`has the input '${name}', expected ${known.join(", ")}`);
  for (const name of needed) if (!inputs.has(name)) throw new DatumFault(`has no input '${name}'`);
}

/** Values of the tokens that follow each position: the first token of a row has none. */
const shifted = (values: ArrayLike<number>): Float32Array => Float32Array.from([0, ...Array.from(values)]);

/** The tokens that are read, and after them the last target. */
function sequenceOf(tokens: Int32Array, targets: ArrayLike<number>): Pick<Row, "ids" | "targets"> {
  const ids = Int32Array.from([...tokens, targets[targets.length - 1]!]);
  const isShift = ids.every((id, i) => i === 0 || id === targets[i - 1]);
  return isShift ? { ids } : { ids, targets: Int32Array.from([0, ...Array.from(targets)]) };
}

type Dense = {
  readonly columns: number;
  /** Null of a tensor of one dimension. */
  readonly width: number | null;
  readonly column: (at: number) => ArrayLike<number>;
};

/** Cells of a tensor of a size that a datum may have; more would be made of a few bytes. */
const MOST_CELLS = 1 << 24;

/** A tensor of `length` rows; cells that a sparse one does not have are 0. Throws DatumFaults. */
export function denseOf({ dtype, shape, values, sparse }: Tensor, name: string, type: Tensor["dtype"], length: number): Dense {
  if (dtype !== type) throw new DatumFault(`${name} are ${dtype}, expected ${type}`);
  const [rows, columns = 1] = shape;
  if (length === 0) throw new DatumFault("has no token");
  if (shape.length < 1 || shape.length > 2 || rows !== length)
    throw new DatumFault(
      `${name} have the shape [${shape.join(", ")}], expected ${counted(length, "row")} as there are tokens`,
    );
  if (!(columns >= 1) || length * columns > MOST_CELLS) throw new DatumFault(`${name} have ${counted(columns, "column")}`);
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!Number.isFinite(value) || (type === "int64" && Math.abs(value) >= 2 ** 31))
      throw new DatumFault(`${name} have ${value} as value ${i}`);
  }
  const cells = sparse ? scattered(name, values, sparse, length, columns) : values;
  if (cells.length !== length * columns)
    throw new DatumFault(`${name} have ${counted(cells.length, "value")}, expected ${count(length * columns)}`);
  const column = (at: number) => (columns === 1 ? cells : Float64Array.from({ length }, (_, i) => cells[i * columns + at]!));
  return { columns, width: shape.length === 2 ? columns : null, column };
}

function scattered(
  name: string,
  values: ArrayLike<number>,
  { rows, columns }: NonNullable<Tensor["sparse"]>,
  length: number,
  width: number,
): Float64Array {
  const wrong = new DatumFault(`${name} are sparse, and their indices are not those of ${values.length} cells in rows`);
  if (rows.length !== length + 1 || rows[0] !== 0 || rows[length] !== values.length || columns.length !== values.length)
    throw wrong;
  const cells = new Float64Array(length * width);
  for (let row = 0; row < length; row++) {
    if (rows[row + 1]! < rows[row]!) throw wrong;
    for (let at = rows[row]!; at < rows[row + 1]!; at++) {
      const column = columns[at]!;
      if (!(column >= 0 && column < width)) throw wrong;
      cells[row * width + column] = values[at]!;
    }
  }
  return cells;
}

/** Log-probabilities of a datum's targets out of those of its rows. */
export function datumLogProbs({ rows, width }: DatumRows, found: readonly Float32Array[]): DatumLogProbs {
  const length = rows[0]!.ids.length - 1;
  const columns = rows.length;
  const logProbs = new Float32Array(length * columns);
  for (const [column, of] of found.entries()) for (let i = 0; i < length; i++) logProbs[i * columns + column] = of[i + 1]!;
  return { logProbs, width };
}

// Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors, so that PEFT, vLLM and others load them.
//
// A VeRA's file has its projections beside its vectors: PEFT draws its own by PyTorch's generator.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { sizeOf } from "../base/shape.ts";
import { type Linear, linearShape, type ModelSpec } from "../base/spec.ts";
import { pathOf } from "../base/targeting.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { type Factors, withFrozenA, withFrozenB } from "../methods/halves.ts";
import { factorsIn } from "../methods/layout.ts";
import { alphaOf, placed, rankAt, scaleAt, scaleOf } from "../methods/placement.ts";
import { type Draw, drawn, type Projection, projectionOf } from "../methods/projection.ts";
import { type Factor, factorShape, methodIn, type PeftMethod, storedBy } from "../methods/registry.ts";
import { writeFileAtomic } from "./atomic.ts";
import { toF32 } from "./convert.ts";
import { type JsonObject, readJsonObject } from "./json.ts";
import { cardOf } from "./peftcard.ts";
import { CONVERT, checkPeftConfig, type TakenOff } from "./peftconfig.ts";
import { type ConfiguredPlaces, configuredPlaces, type PlaceFields, placeFields } from "./peftplaces.ts";
import { openSafetensors, type SafetensorsFile, writeSafetensors } from "./safetensors.ts";

export type PeftAdapter = {
  readonly rank: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly targets: readonly Linear[];
  readonly rslora: boolean;
  /** Left out: "lora". */
  readonly method?: PeftMethod;
  /** Where layers or linears differ; then `rank` is the largest, and alpha goes by scales and ranks. */
  readonly places?: PoolAdapter["places"];
  readonly vera?: VeraFields | null;
  readonly baseModel: string;
  /** Of an adapter that keeps its beginning frozen beside it, half of each rank: what that was. */
  readonly begun?: { readonly init: string } | null;
};

/** What only a VeRA has. */
export type VeraFields = {
  readonly projectionSeed: number;
  readonly dInitial: number;
  readonly projection: Projection;
};

/** A factor of one linear in one layer. */
export type PeftFactor = {
  readonly layer: number;
  readonly linear: Linear;
  readonly factor: Factor;
  readonly values: Float32Array;
};

const BASE = "base_model.model.";
const PREFIX = `${BASE}model.layers.`;
const NAMES: Readonly<Record<Factor, string>> = {
  A: "lora_A.weight",
  B: "lora_B.weight",
  M: "lora_magnitude_vector",
  lambda_d: "vera_lambda_d",
  lambda_b: "vera_lambda_b",
};
const PROJECTIONS = { a: "base_model.vera_A", b: "base_model.vera_B" } as const;
const tensorName = (layer: number, linear: Linear, factor: Factor): string =>
  `${BASE}${pathOf(layer, linear)}.${NAMES[factor]}`;

/** The fields that PEFT writes for a LoRA; those that we have no other value for are its defaults. */
const configOf = ({ dropout, rslora, method, baseModel }: PeftAdapter, fields: PlaceFields) => ({
  alpha_pattern: fields.alphaPattern,
  auto_mapping: null,
  base_model_name_or_path: baseModel,
  bias: "none",
  corda_config: null,
  eva_config: null,
  exclude_modules: null,
  fan_in_fan_out: false,
  inference_mode: true,
  init_lora_weights: true,
  layer_replication: null,
  layers_pattern: null,
  layers_to_transform: fields.layers,
  loftq_config: {},
  lora_alpha: fields.alpha,
  lora_bias: false,
  lora_dropout: dropout,
  megatron_config: null,
  megatron_core: "megatron.core",
  modules_to_save: null,
  peft_type: "LORA",
  r: fields.rank,
  rank_pattern: fields.rankPattern,
  revision: null,
  target_modules: fields.targets,
  target_parameters: null,
  task_type: "CAUSAL_LM",
  trainable_token_indices: null,
  use_dora: storedBy(method).includes("M"),
  use_rslora: rslora,
});

/** The fields of a VeRA; its projections are in the file. */
const veraConfigOf = ({ rank, dropout, baseModel, vera }: PeftAdapter, fields: PlaceFields) => ({
  auto_mapping: null,
  base_model_name_or_path: baseModel,
  bias: "none",
  d_initial: vera!.dInitial,
  fan_in_fan_out: false,
  inference_mode: true,
  init_weights: true,
  layers_pattern: null,
  layers_to_transform: fields.layers,
  modules_to_save: null,
  peft_type: "VERA",
  projection_prng_key: vera!.projectionSeed,
  r: rank,
  revision: null,
  save_projection: true,
  target_modules: fields.targets,
  task_type: "CAUSAL_LM",
  vera_dropout: dropout,
});

/** Writes an adapter into `folder`. Each file is whole or absent. Throws a RunError. */
export function writePeftAdapter(folder: string, adapter: PeftAdapter, factors: readonly PeftFactor[]): void {
  const { vera } = adapter;
  const tensors = factors.map(({ layer, linear, factor, values }) => {
    const rank = rankAt(adapter, layer, linear);
    const outer = values.length / rank;
    const shape = factor === "A" ? [rank, outer] : factor === "B" ? [outer, rank] : [values.length]; // of any model
    return { name: tensorName(layer, linear, factor), dtype: "f32" as const, shape, data: values };
  });
  if (vera) {
    const { rank } = adapter;
    const { width, height, a, b } = vera.projection;
    const put = (name: string, shape: [number, number], draw: Draw) => {
      tensors.push({ name, dtype: "f32", shape, data: drawn(draw, shape[0] * shape[1]) });
    };
    put(PROJECTIONS.a, [rank, width], a);
    put(PROJECTIONS.b, [height, rank], b);
  }
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1));
  writeSafetensors(join(folder, "adapter_model.safetensors"), tensors, { format: "pt" });
  if (adapter.begun) writeFileAtomic(join(folder, "README.md"), cardOf(adapter, adapter.begun));
  writeFileAtomic(
    join(folder, "adapter_config.json"),
    `${JSON.stringify((vera ? veraConfigOf : configOf)(adapter, placeFields(adapter)), null, 2)}\n`,
  );
}

export type SavedAdapter = Omit<PeftAdapter, "vera" | "begun"> & {
  readonly method: PeftMethod;
  readonly scale: number;
  /** Of one that PEFT takes off the base model: what its file says of the half that was trained. */
  readonly begun?: { readonly init: TakenOff; readonly rank: number; readonly alpha: number };
  /** Of a VeRA: whether its projections are those that mlora draws from the seed. */
  readonly vera?: Omit<VeraFields, "projection"> & { readonly isDrawnHere: boolean };
  /** A factor; of a VeRA, A and B are diag(d) A and diag(b) B, so that it can be taken for a LoRA with a scale of 1. */
  readonly tensor: (layer: number, linear: Linear, factor: Factor) => Float32Array;
};

/** A part of a linear's weight, scale B0 A0, as PEFT takes it off the base model for adapters that begin with it: A0 f32[rank, in], B0 f32[out, rank]. */
export type PartOfWeight = (at: Place & { readonly init: TakenOff; readonly rank: number; readonly scale: number }) => Factors;
type Place = { readonly layer: number; readonly linear: Linear };

/** What PEFT takes off the base model where it loads the adapter in `folder`; null of a plain one. Throws a RequestError as `readPeftAdapter` does. */
export function takenOffBy(folder: string): TakenOff | null {
  const path = join(folder, "adapter_config.json");
  return checkPeftConfig(readJsonObject(path, "peft.config"), path);
}

/**
 * Reads an adapter that PEFT or mlora wrote for a model of this spec. One that PEFT takes off the base model becomes, by `partOf`, a LoRA of twice the rank with the
 * base as it is: W - scale B0 A0 + scale B A is W + scale [B, -B0] [A; A0]; without `partOf` it is refused. Throws a RequestError that lists what does not fit.
 */
export function readPeftAdapter(folder: string, spec: ModelSpec, partOf: PartOfWeight | null = null): SavedAdapter {
  const path = join(folder, "adapter_config.json");
  const config = readJsonObject(path, "peft.config");
  const init = checkPeftConfig(config, path);
  if (init !== null && partOf === null) throw new RequestError("peft.kind", `${path}: init_lora_weights is "${init}"`, CONVERT);
  const isVera = config["peft_type"] === "VERA";
  const rank = countOf(config, "r", path);
  const alpha = isVera ? rank : numberOf(config, "lora_alpha", path);
  const dropoutKey = isVera ? "vera_dropout" : "lora_dropout";
  const dropout = config[dropoutKey] ?? 0;
  if (typeof dropout !== "number" || !(dropout >= 0 && dropout < 1))
    throw new RequestError(
      "peft.config",
      `${path}: ${dropoutKey} is ${JSON.stringify(dropout)}, wants a number from 0 to below 1`,
    );
  if (!existsSync(join(folder, "adapter_model.safetensors")) && existsSync(join(folder, "adapter_model.bin")))
    throw new RequestError(
      "peft.tensors",
      `${folder} has adapter_model.bin, expected adapter_model.safetensors`,
      "save the adapter as safetensors: save_pretrained(folder, safe_serialization=True)",
    );
  using file = openSafetensors(join(folder, "adapter_model.safetensors"));
  checkPrefix(file);
  const method = methodIn(config);
  const rslora = config["use_rslora"] === true;
  const hasOwn = (layer: number, linear: Linear) => file.tensors.has(tensorName(layer, linear, isVera ? "lambda_b" : "A"));
  const configured = configuredPlaces(config, path);
  const placement = placed(spec.layers, (layer, linear) => {
    if (!hasOwn(layer, linear) && configured.isTargeted?.(layer, linear) !== true) return null;
    const own = { rank: configured.rankAt(layer, linear) ?? rank, alpha: configured.alphaAt(layer, linear) ?? alpha };
    return { rank: own.rank, scale: scaleOf({ ...own, rslora, method }) };
  });
  checkTensors(file, spec, placement, rank, method, configured);
  const values = new Map<string, Float32Array>();
  for (const [name, { dtype, bytes }] of file.tensors) {
    const raw = new Uint8Array(bytes);
    file.readInto(name, raw);
    const read = toF32(raw, dtype!);
    if (!read.every(Number.isFinite))
      throw new RequestError("peft.values", `${file.path}: ${name} has values that are no finite numbers`);
    values.set(name, read);
  }
  const tensor: SavedAdapter["tensor"] = (layer, linear, factor) => values.get(tensorName(layer, linear, factor))!;
  const { targets } = placement;
  const shared = { ...placement, dropout, method, baseModel: String(config["base_model_name_or_path"] ?? "") } as const;
  if (!isVera) {
    const saved = { ...shared, alpha: uniformAlpha(placement, alpha, rslora), rslora, tensor };
    return init === null ? saved : besideWeight(saved, init, partOf!, spec);
  }
  const [a, b] = [values.get(PROJECTIONS.a)!, values.get(PROJECTIONS.b)!];
  const projectionSeed = Number(config["projection_prng_key"] ?? 0);
  const ours = projectionOf(spec, targets, rank, projectionSeed);
  const isDrawnHere = [drawn(ours.a, a.length), drawn(ours.b, b.length)].every((values, i) =>
    values.every((value, at) => value === (i === 0 ? a : b)[at]),
  );
  return {
    ...shared,
    ...{ alpha, rslora: false },
    vera: { projectionSeed, dInitial: Number(config["d_initial"] ?? 0.1), isDrawnHere },
    tensor: (layer, linear, factor) => {
      if (factor === "A") return scaledRows(a, ours.width, linearShape(spec, linear).in, tensor(layer, linear, "lambda_d"));
      if (factor === "B") return scaledRows(b, rank, rank, tensor(layer, linear, "lambda_b"));
      return tensor(layer, linear, factor);
    },
  };
}

/** The adapter with what it takes off the weight behind its own ranks, at the same scale. */
function besideWeight(saved: SavedAdapter, init: TakenOff, partOf: PartOfWeight, spec: ModelSpec): SavedAdapter {
  const doubled = placed(spec.layers, (layer, linear) => {
    const rank = rankAt(saved, layer, linear);
    return rank === 0 ? null : { rank: 2 * rank, scale: scaleAt(saved, layer, linear) };
  });
  let last: { readonly layer: number; readonly linear: Linear; readonly part: ReturnType<PartOfWeight> } | null = null;
  const partAt = (layer: number, linear: Linear) => {
    if (last?.layer !== layer || last.linear !== linear) {
      const of = { layer, linear, init, rank: rankAt(saved, layer, linear), scale: scaleAt(saved, layer, linear) };
      last = { layer, linear, part: partOf(of) };
    }
    return last.part;
  };
  const { places: _, ...uniform } = saved;
  return {
    ...{ ...uniform, ...doubled },
    alpha: alphaOf(doubled.scale, doubled.rank, saved.rslora),
    begun: { init, rank: saved.rank, alpha: saved.alpha },
    tensor: (layer, linear, factor) => {
      const own = saved.tensor(layer, linear, factor);
      if (factor === "A") return withFrozenA(own, partAt(layer, linear).a);
      if (factor === "B") return withFrozenB(own, partAt(layer, linear).b, rankAt(saved, layer, linear));
      return own;
    },
  };
}

/** The first rows of a matrix of rows of `stride`, as many as there are factors, each cut to `width` and multiplied by its own. */
function scaledRows(matrix: Float32Array, stride: number, width: number, factors: Float32Array): Float32Array {
  const out = new Float32Array(factors.length * width);
  for (const [i, factor] of factors.entries())
    for (let j = 0; j < width; j++) out[i * width + j] = matrix[i * stride + j]! * factor;
  return out;
}

function numberOf(config: JsonObject, key: string, path: string): number {
  const value = config[key];
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
    throw new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(value)}, wants a number above 0`);
  return value;
}

function countOf(config: JsonObject, key: string, path: string): number {
  const value = numberOf(config, key, path);
  if (!Number.isInteger(value)) throw new RequestError("peft.config", `${path}: ${key} is ${value}, wants a whole number`);
  return value;
}

const SHOWN = 5;

function checkTensors(
  file: SafetensorsFile,
  spec: ModelSpec,
  placement: ReturnType<typeof placed>,
  rank: number,
  method: PeftMethod,
  configured: ConfiguredPlaces,
): void {
  const { targets, places } = placement;
  const wanted = new Map<string, readonly number[]>();
  const faults: string[] = targets.length === 0 ? ["it has no factor of any linear"] : [];
  for (const { layer, linear, factor } of factorsIn({ from: 0, to: spec.layers }, targets, method, places)) {
    wanted.set(tensorName(layer, linear, factor), factorShape(spec, linear, factor, rankAt(placement, layer, linear)));
    if (factor === storedBy(method)[0] && configured.isTargeted?.(layer, linear) === false)
      faults.push(`it has factors of ${pathOf(layer, linear)}, which ${configured.told} leaves out`);
  }
  if (storedBy(method).includes("lambda_d") && targets.length > 0) {
    const { width, height } = projectionOf(spec, targets, rank, 0);
    wanted.set(PROJECTIONS.a, [rank, width]);
    wanted.set(PROJECTIONS.b, [height, rank]);
  }
  const missing = [...wanted.keys()].filter((name) => !file.tensors.has(name));
  faults.push(...missing.map((name) => `${name} is missing`));
  for (const [name, shape] of wanted) {
    const entry = file.tensors.get(name);
    if (!entry) continue;
    if (`${entry.shape}` !== `${shape}`) faults.push(`${name} is [${entry.shape}], wanted [${shape}]`);
    else if (!entry.dtype || sizeOf(shape) === 0) faults.push(`${name} is ${entry.type}`);
  }
  for (const name of file.tensors.keys()) if (!wanted.has(name)) faults.push(`${name} is not known`);
  if (faults.length === 0) return;
  const isDrawnAnew = storedBy(method).includes("lambda_d") && !file.tensors.has(PROJECTIONS.a);
  const more = faults.length > SHOWN ? `; and ${faults.length - SHOWN} more` : "";
  const asked = missing.length > 0 && configured.isTargeted ? ` (${configured.told})` : "";
  throw new RequestError(
    "peft.tensors",
    `${file.path} does not fit the base model: ${faults.slice(0, SHOWN).join("; ")}${more}${asked}`,
    isDrawnAnew ? "a VeRA's projections have to be in its file: have PEFT save it with save_projection=True" : undefined,
  );
}

/** Throws a RequestError where a file's layers are called otherwise, as in a model that has the base as a part. */
function checkPrefix({ path, tensors }: SafetensorsFile): void {
  const prefixes = [...tensors.keys()].flatMap((name) => /^(.*?\blayers\.)\d+\./.exec(name)?.[1] ?? []);
  const other = prefixes.find((prefix) => prefix !== PREFIX);
  if (other === undefined || prefixes.includes(PREFIX)) return;
  throw new RequestError(
    "peft.tensors",
    `${path} does not fit the base model: its tensors' names begin with '${other}', expected '${PREFIX}'`,
    "it was trained on a model that is built otherwise around its layers; if they are this model's, rename the adapter's tensors",
  );
}

/** An adapter whose ranks and alphas are all the same has them as its own, whatever the patterns were. */
const uniformAlpha = ({ rank, scale, places }: ReturnType<typeof placed>, alpha: number, rslora: boolean): number =>
  places || scale === scaleOf({ alpha, rank, rslora, method: "lora" }) ? alpha : alphaOf(scale, rank, rslora);

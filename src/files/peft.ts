// Adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors, so that PEFT, vLLM and others load them.
// What differs by method is its definition's.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { replaceTogether, writeFileAtomic } from "../base/atomic.ts";
import { RequestError } from "../base/errors.ts";
import { range, sizeOf } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { GROUPS, groupsOfLayer, isOfExperts, type Linear, linearShape, pathOf } from "../families/linears.ts";
import { tableModules } from "../families/tensors.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import type { SharedTensor } from "../methods/definition.ts";
import { type Factors, withFrozenA, withFrozenB } from "../methods/halves.ts";
import { type FactorAt, type FactorTensor, factorsIn, isOfLinear, isOfTable } from "../methods/layout.ts";
import { alphaOf, placed, rankAt, scaleAt, scaleOf, sharingOf } from "../methods/placement.ts";
import {
  DEFINITIONS,
  type Factor,
  factorShape,
  isScaled,
  type PeftMethod,
  type StageSettings,
  storedBy,
  TENSORS,
} from "../methods/registry.ts";
import { isTableKind, type TableKind, type TableTensor } from "../methods/tables.ts";
import { areFinite, toF32 } from "./convert.ts";
import { type JsonObject, readJsonObject } from "./json.ts";
import { cardOf } from "./peftcard.ts";
import { CONVERT, checkPeftConfig, type TakenOff } from "./peftconfig.ts";
import { type Acts, checkParameters, expertEntries, expertFactor, SHARING, sharedAlike, tensorsOf } from "./peftexpertfile.ts";
import { actsApart, besideExperts, withExperts } from "./peftexpertplaces.ts";
import { expertTensors } from "./peftexperts.ts";
import { type ConfiguredPlaces, configuredPlaces, placesOfFile } from "./peftplaces.ts";
import {
  type BaseOfAdapter,
  readTables,
  TABLE_KEYS,
  type TableChanges,
  tablesOf,
  tableTensor,
  tableTensors,
  writtenTables,
} from "./pefttables.ts";
import { openSafetensors, type SafetensorsFile, type TensorData, writeSafetensors } from "./safetensors.ts";

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
  readonly tables?: PoolAdapter["tables"];
  /** Values of the method's own keys, and the tensors that are once in the file for all linears. */
  readonly settings?: StageSettings;
  readonly shared?: readonly SharedTensor[];
  readonly baseModel: string;
  /** Of an adapter with a frozen half of each rank, its first values: the initialisation that gave them. */
  readonly begun?: { readonly init: string } | null;
};

const BASE = "base_model.model.";
const prefixOf = (tower: string): string => `${BASE}${tower}.layers.`;
type TensorName = (layer: number, linear: Linear, factor: Factor) => string;
const namesIn =
  (tower: string): TensorName =>
  (layer, linear, factor) =>
    `${BASE}${pathOf(tower, layer, linear)}.${TENSORS[factor].peft}`;

/** The name of a factor's tensor in the files of a model's adapter. */
export const peftName = (spec: Pick<ModelSpec, "family" | "tower">, of: FactorAt): string =>
  isOfTable(of)
    ? `${BASE}${tableModules(spec)[of.linear]}.${of.factor}`
    : namesIn(spec.tower)(of.layer, of.linear, of.factor as Factor);

/** Writes an adapter of a model of this spec into `folder`. Each file is whole or absent. Throws a RunError. */
export function writePeftAdapter(
  folder: string,
  spec: ModelSpec,
  adapter: PeftAdapter,
  factors: readonly FactorTensor[],
): void {
  const { method = "lora", settings = {}, shared = [] } = adapter;
  const tensorName = namesIn(spec.tower);
  const acts = adapter.targets.some(isOfExperts);
  const tensors = factors.filter(isOfLinear).flatMap(({ layer, linear, factor, values }): TensorData[] => {
    if (isOfExperts(linear)) return expertEntries(spec, adapter, { layer, linear, factor, values });
    const rank = rankAt(adapter, layer, linear);
    const shape = { "rank in": [rank, values.length / rank], "out rank": [values.length / rank, rank] }; // of any model
    const { axes } = TENSORS[factor];
    const of = axes === "rank" || axes === "out" ? [values.length] : shape[axes];
    return [{ name: tensorName(layer, linear, factor), dtype: "f32", shape: of, data: values }];
  });
  if (adapter.tables) tensors.push(...writtenTables(spec, adapter.tables, factors.filter(isOfTable)));
  for (const { name, shape, values } of shared) tensors.push({ name, dtype: "f32", shape: [...shape], data: values() });
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1));
  const tag = acts ? { [SHARING]: sharingOf(adapter) } : {};
  const { dropout, baseModel } = adapter;
  const rslora = adapter.rslora && !(acts && actsApart(adapter, spec));
  const { places: _, ...uniform } = { ...adapter, rslora };
  const others = acts ? besideExperts({ ...adapter, rslora }) : adapter;
  const fields = others && placesOfFile(acts ? { ...uniform, ...others } : adapter, spec);
  const places = acts ? withExperts(fields, { ...adapter, rslora }, spec) : { ...fields!, parameters: null };
  // PEFT refuses dropout of what it trains in experts, also where it only reads it.
  const config = DEFINITIONS[method].peft.config({ ...places, dropout: acts ? 0 : dropout, rslora, baseModel, settings });
  replaceTogether(folder, () => {
    writeSafetensors(join(folder, "adapter_model.safetensors"), tensors, { format: "pt", ...tag });
    if (adapter.begun) writeFileAtomic(join(folder, "README.md"), cardOf(adapter, adapter.begun));
    writeFileAtomic(join(folder, "adapter_config.json"), `${JSON.stringify(config, null, 2)}\n`);
  });
}

export type SavedAdapter = Omit<PeftAdapter, "settings" | "shared" | "begun"> & {
  readonly method: PeftMethod;
  readonly scale: number;
  /** Of one that PEFT takes off the base model: what its file says of the half that was trained. */
  readonly begun?: { readonly init: TakenOff; readonly rank: number; readonly alpha: number };
  /** Of a method with shared tensors: its settings, and whether the shared tensors are those that mlora draws by them. */
  readonly own?: StageSettings & { readonly isDrawnHere: boolean };
  /** What it changes of embedding and head. */
  readonly changes?: TableChanges;
  /**
   * A factor; A and B of a method without them are those of the LoRA with scale 1 that the adapter is with its shared
   * tensors.
   */
  readonly tensor: (layer: number, linear: Linear | TableKind, factor: Factor | TableTensor) => Float32Array;
};

/**
 * A part of a linear's weight, scale B0 A0, as PEFT takes it off the base model for adapters that begin with it: A0
 * f32[rank, in], B0 f32[out, rank].
 */
export type PartOfWeight = (at: Place & { readonly init: TakenOff; readonly rank: number; readonly scale: number }) => Factors;
type Place = { readonly layer: number; readonly linear: Linear };

/**
 * What PEFT takes off the base model where it loads the adapter in `folder`; null of a plain one. Throws a RequestError as
 * `readPeftAdapter` does.
 */
export function takenOffBy(folder: string): TakenOff | null {
  const path = join(folder, "adapter_config.json");
  return checkPeftConfig(readJsonObject(path, "peft.config"), path).takenOff;
}

/**
 * Reads an adapter that PEFT or mlora wrote for a model of this spec. One that PEFT takes off the base model becomes, by
 * `partOf`, a LoRA of twice the rank with the base unchanged: W - scale B0 A0 + scale B A is W + scale [B, -B0] [A; A0];
 * without `partOf` it is refused. Copies of the base model's tables are compared with `base` where that is given. `look` is
 * called for each tensor of linears in place of reading it: then the adapter has no values of them. Throws a RequestError that
 * lists what does not fit.
 */
export function readPeftAdapter(
  folder: string,
  spec: ModelSpec,
  partOf: PartOfWeight | null = null,
  base: BaseOfAdapter | null = null,
  look: ((name: string, file: SafetensorsFile) => void) | null = null,
): SavedAdapter {
  const path = join(folder, "adapter_config.json");
  const config = readJsonObject(path, "peft.config");
  const { method, takenOff: init } = checkPeftConfig(config, path);
  if (init !== null && partOf === null) throw new RequestError("peft.kind", `${path}: init_lora_weights is "${init}"`, CONVERT);
  const { dropout: dropoutKey, settings: settingsIn, shared } = DEFINITIONS[method].peft;
  const rank = countOf(config, "r", path);
  const alpha = isScaled(method) ? numberOf(config, "lora_alpha", path) : rank;
  const dropout = config[dropoutKey] ?? 0;
  if (typeof dropout !== "number" || !(dropout >= 0 && dropout < 1))
    throw new RequestError(
      "peft.config",
      `${path}: ${dropoutKey} is ${JSON.stringify(dropout)}, expected a number from 0 to below 1`,
    );
  if (!existsSync(join(folder, "adapter_model.safetensors")) && existsSync(join(folder, "adapter_model.bin")))
    throw new RequestError(
      "peft.tensors",
      `${folder} has adapter_model.bin, expected adapter_model.safetensors`,
      "save the adapter as safetensors: save_pretrained(folder, safe_serialization=True)",
    );
  using file = openSafetensors(join(folder, "adapter_model.safetensors"));
  const tower = towerOf(file, spec);
  const tensorName = namesIn(tower);
  const modules = tableModules(spec, tower);
  const ofTables = tableTensors(file, modules);
  const rslora = isScaled(method) && config["use_rslora"] === true;
  const parameters = config["target_parameters"] ?? [];
  const isFused = Array.isArray(parameters) && parameters.length > 0;
  if (isFused) checkParameters(config, path, { spec, tower });
  const nameOf = (layer: number, linear: Linear, factor: Factor): string =>
    isOfExperts(linear)
      ? expertTensors({ spec, tower, layer, linear }, factor as "A" | "B", 1, false).names[0]!
      : tensorName(layer, linear, factor);
  // Which parameter of experts a tensor is of, target_parameters alone tells.
  const hasOwn = (layer: number, linear: Linear) =>
    !(isOfExperts(linear) && isFused) && storedBy(method).some((factor) => file.tensors.has(nameOf(layer, linear, factor)));
  const configured = configuredPlaces(config, path, tower, spec);
  const groups = range(spec.layers).map((layer) => groupsOfLayer(spec, layer));
  const sharing = file.metadata[SHARING] === "per-expert" ? "per-expert" : "shared-outer";
  const places = placed(
    spec.layers,
    (layer, linear) => {
      if (!groups[layer]!.some((group) => GROUPS[group].includes(linear))) return null;
      if (!hasOwn(layer, linear) && configured.isTargeted?.(layer, linear) !== true) return null;
      const own = { rank: configured.rankAt(layer, linear) ?? rank, alpha: configured.alphaAt(layer, linear) ?? alpha };
      return { rank: own.rank, scale: scaleOf({ ...own, rslora, method }) };
    },
    sharing,
  );
  const { targets } = places;
  const settings: StageSettings = settingsIn?.(config) ?? {};
  const drawn = targets.length === 0 ? [] : (shared?.tensors(spec, targets, rank, settings) ?? []);
  const acts = { spec, tower, isFused };
  checkTensors(file, acts, places, drawn, method, configured, ofTables);
  const hasTables = ofTables.length > 0 || TABLE_KEYS.some((key) => config[key] != null);
  const changes = hasTables ? readTables({ file, config, path, spec, modules, base }) : null;
  const tables = changes && tablesOf(spec, changes);
  const values = new Map<string, Float32Array>();
  for (const [name, { dtype, bytes }] of file.tensors) {
    if (ofTables.includes(name)) continue;
    if (look) {
      look(name, file);
      continue;
    }
    const raw = new Uint8Array(bytes);
    file.readInto(name, raw);
    const read = toF32(raw, dtype!);
    if (!areFinite(read)) throw new RequestError("peft.values", `${file.path}: ${name} has values that are no finite numbers`);
    values.set(name, read);
  }
  const placement = targets.some(isOfExperts) ? sharedAlike(acts, places, values) : places;
  const tensor: SavedAdapter["tensor"] = (layer, linear, factor) => {
    if (isTableKind(linear)) return tableTensor(changes!, linear, factor as TableTensor);
    const own = factor as Factor;
    if (isOfExperts(linear)) return expertFactor(acts, placement, values, { layer, linear, factor: own });
    return values.get(tensorName(layer, linear, own))!;
  };
  const baseModel = String(config["base_model_name_or_path"] ?? "");
  const saved: SavedAdapter = {
    ...placement,
    dropout,
    method,
    baseModel,
    rslora,
    alpha: uniformAlpha(placement, alpha, rslora, method),
    tensor,
    ...(tables ? { tables } : {}),
    ...(changes ? { changes } : {}),
  };
  if (init !== null) return besideWeight(saved, init, partOf!, spec);
  if (!shared) return saved;
  const matrices = drawn.map(({ name, shape }) => ({ values: values.get(name)!, columns: shape[1] }));
  const isDrawnHere = drawn.every(({ values: ours }, i) => {
    const expected = ours();
    return expected.every((value, at) => value === matrices[i]!.values[at]);
  });
  return {
    ...saved,
    own: { ...settings, isDrawnHere },
    tensor(layer, linear, factor) {
      if (isTableKind(linear) || (factor !== "A" && factor !== "B")) return tensor(layer, linear, factor);
      return shared.factor(factor, linearShape(spec, linear, layer).in, matrices, (name) =>
        tensor(layer, linear, name as Factor),
      );
    },
  };
}

/** The adapter with what it takes off the weight as further ranks after its own, at the same scale. */
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
      if (isTableKind(linear)) return own;
      if (factor === "A") return withFrozenA(own, partAt(layer, linear).a);
      if (factor === "B") return withFrozenB(own, partAt(layer, linear).b, rankAt(saved, layer, linear));
      return own;
    },
  };
}

function numberOf(config: JsonObject, key: string, path: string): number {
  const value = config[key];
  if (typeof value !== "number" || !Number.isFinite(value) || value <= 0)
    throw new RequestError("peft.config", `${path}: ${key} is ${JSON.stringify(value)}, expected a number above 0`);
  return value;
}

function countOf(config: JsonObject, key: string, path: string): number {
  const value = numberOf(config, key, path);
  if (!Number.isInteger(value)) throw new RequestError("peft.config", `${path}: ${key} is ${value}, expected a whole number`);
  return value;
}

const SHOWN = 5;

function checkTensors(
  file: SafetensorsFile,
  acts: Acts,
  placement: ReturnType<typeof placed>,
  shared: readonly SharedTensor[],
  method: PeftMethod,
  configured: ConfiguredPlaces,
  ofTables: readonly string[],
): void {
  const { spec, tower } = acts;
  const { targets, places } = placement;
  const tensorName = namesIn(tower);
  const wanted = new Map<string, readonly number[]>();
  const isEmpty = targets.length === 0 && ofTables.length === 0;
  const faults: string[] = isEmpty ? ["it has no factor of any linear"] : [];
  for (const { layer, linear, factor } of factorsIn({ from: 0, to: spec.layers }, targets, method, places)) {
    if (isOfExperts(linear)) {
      const { names, shape } = tensorsOf(acts, placement, { layer, linear, factor });
      for (const name of names) wanted.set(name, shape);
    } else
      wanted.set(tensorName(layer, linear, factor), factorShape(spec, linear, factor, rankAt(placement, layer, linear), layer));
    if (factor === storedBy(method)[0] && configured.isTargeted?.(layer, linear) === false)
      faults.push(`it has factors of ${pathOf(tower, layer, linear)}, which ${configured.keys} leaves out`);
  }
  for (const { name, shape } of shared) wanted.set(name, shape);
  const missing = [...wanted.keys()].filter((name) => !file.tensors.has(name));
  faults.push(...missing.map((name) => `${name} is missing`));
  for (const [name, shape] of wanted) {
    const entry = file.tensors.get(name);
    if (!entry) continue;
    if (`${entry.shape}` !== `${shape}`) faults.push(`${name} is [${entry.shape}], expected [${shape}]`);
    else if (!entry.dtype || sizeOf(shape) === 0) faults.push(`${name} is ${entry.type}`);
  }
  for (const name of file.tensors.keys())
    if (!wanted.has(name) && !ofTables.includes(name)) faults.push(`${name} is not known`);
  if (faults.length === 0) return;
  const lacks = shared.some(({ name }) => !file.tensors.has(name));
  const more = faults.length > SHOWN ? `; and ${faults.length - SHOWN} more` : "";
  const asked = missing.length > 0 && configured.isTargeted ? ` (${configured.keys})` : "";
  throw new RequestError(
    "peft.tensors",
    `${file.path} does not fit the base model: ${faults.slice(0, SHOWN).join("; ")}${more}${asked}`,
    lacks ? DEFINITIONS[method].peft.shared!.missing : undefined,
  );
}

/** How layers are called by versions and classes that train a model's part for text alone. */
const OTHER_TOWERS = ["model.language_model", "language_model.model", "model"] as const;

/**
 * The path of the layers in the names of a file's tensors: the model's, or, of a model with other parts, one that stands for
 * it. Throws a RequestError where it is another, as in a model that has the base as a part.
 */
function towerOf({ path, tensors }: SafetensorsFile, { tower }: ModelSpec): string {
  const prefixes = [...tensors.keys()].flatMap((name) => /^(.*?\blayers\.)\d+\./.exec(name)?.[1] ?? []);
  const known = [tower, ...(tower === "model" ? [] : OTHER_TOWERS)];
  const found = known.find((of) => prefixes.includes(prefixOf(of)));
  if (found !== undefined || prefixes.length === 0) return found ?? tower;
  throw new RequestError(
    "peft.tensors",
    `${path} does not fit the base model: its tensors' names begin with '${prefixes[0]}', expected '${prefixOf(tower)}'`,
    "it was trained on a model that is built otherwise around its layers; if they are this model's, rename the adapter's tensors",
  );
}

/** An adapter whose ranks and alphas are all the same has them as its own, whatever the patterns were. */
const uniformAlpha = (
  { rank, scale, places, targets }: ReturnType<typeof placed>,
  alpha: number,
  rslora: boolean,
  method: PeftMethod,
): number =>
  places || targets.length === 0 || scale === scaleOf({ alpha, rank, rslora, method }) ? alpha : alphaOf(scale, rank, rslora);

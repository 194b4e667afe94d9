// All methods, and what the program asks of one by its name. Nothing outside this folder compares names of methods.

import * as v from "valibot";
import { type Camel, type CamelKeys, camel, camelKeys } from "../base/case.ts";
import type { Output } from "../base/schema.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type Linear, linearShape } from "../families/linears.ts";
import type { Axes, Definition, StoredTensor } from "./definition.ts";
import { dora } from "./dora.ts";
import { lora } from "./lora.ts";
import { copiesOf, type ExpertSharing } from "./sharing.ts";
import { vera } from "./vera.ts";

const ALL = { lora, dora, vera } satisfies Readonly<Record<string, Definition<never>>>;
type All = typeof ALL;

/** What a recipe calls an adapter's method; left out: "lora". */
export type PeftMethod = keyof All;
export const PEFT_METHODS = Object.keys(ALL) as readonly PeftMethod[];
/** The compiler knows each definition by its own settings; here any of them goes with the settings of its name. */
export const DEFINITIONS = ALL as unknown as Readonly<Record<PeftMethod, Definition>>;

/** A tensor of some method, by its name in checkpoints; one name is the same tensor in all methods that have it. */
export type Factor = { [M in PeftMethod]: keyof All[M]["tensors"] & string }[PeftMethod];
const definitions = Object.values(DEFINITIONS);
export const TENSORS = Object.assign({}, ...definitions.map(({ tensors }) => tensors)) as Readonly<
  Record<Factor, StoredTensor>
>;
export const FACTORS = Object.keys(TENSORS) as readonly Factor[];

type Keys = All[PeftMethod]["keys"];
/** Keys of a recipe that some methods have and others have not. */
export type OwnKey = { [M in PeftMethod]: keyof All[M]["keys"] & string }[PeftMethod];
export const ownEntries = Object.assign({}, ...definitions.map(({ keys }) => keys)) as {
  readonly [K in OwnKey]: Extract<Keys, Readonly<Record<K, unknown>>>[K];
};
type OwnEntries = typeof ownEntries;
/** Their values where a recipe has none; null without a default. */
export const ownDefaults = camelKeys(
  Object.fromEntries(Object.entries(ownEntries).map(([key, schema]) => [key, v.getDefault<v.GenericSchema>(schema) ?? null])),
) as unknown as CamelKeys<{
  readonly [K in OwnKey]: OwnEntries[K] extends v.OptionalSchema<v.GenericSchema, unknown> ? Output<OwnEntries[K]> : null;
}>;
export const OWN_KEYS = Object.keys(ownEntries) as readonly OwnKey[];
export const hasKey = (method: PeftMethod, key: OwnKey): boolean => Object.hasOwn(DEFINITIONS[method].keys, key);

type StageKey = All[PeftMethod]["settings"][number];
/** The keys that stages know, as they travel. */
export const stageEntries = Object.fromEntries(
  definitions.flatMap(({ settings, keys }) => settings.map((key) => [camel(key), v.exactOptional(keys[key]!)])),
) as { readonly [K in StageKey as Camel<K>]: v.ExactOptionalSchema<OwnEntries[K], undefined> };
export type StageSettings = { readonly [K in StageKey as Camel<K>]?: Output<OwnEntries[K]> };

/** The tensors of an adapter, and of these the ones that stay as they began. */
export const storedBy = (method: PeftMethod = "lora"): readonly Factor[] =>
  Object.keys(DEFINITIONS[method].tensors) as Factor[];
export const frozenIn = (method: PeftMethod = "lora"): readonly Factor[] => {
  const trained: readonly string[] | undefined = DEFINITIONS[method].trained;
  return trained ? storedBy(method).filter((name) => !trained.includes(name)) : [];
};

/** Tensors of the low-rank product, which every method is computed with, be they stored or made from others. */
const LOW_RANK = storedBy("lora");
export const isLowRank = (factor: Factor): boolean => LOW_RANK.includes(factor);

/** Whether its low-rank product is scaled by alpha and rank. */
export const isScaled = (method: PeftMethod): boolean => hasKey(method, "alpha");

/** As what an adapter is computed that is not trained: one whose A and B follow from its file is a LoRA. */
export const frozenAs = (method: PeftMethod): PeftMethod => (DEFINITIONS[method].peft.shared ? "lora" : method);

/** Whether what it adds to a weight is scale B A alone, once it is not trained any more. */
export const isProduct = (method: PeftMethod): boolean => storedBy(frozenAs(method)).every(isLowRank);

/** The method of an adapter_config.json; null where its peft_type is not known. */
export const methodIn = (config: Readonly<Record<string, unknown>>): PeftMethod | null =>
  PEFT_METHODS.find((method) => {
    const { peftType, isOf } = DEFINITIONS[method].peft;
    return config["peft_type"] === peftType && isOf(config);
  }) ?? null;

/** The method that the files of an adapter say: methods that train the same function have the same files. */
export const fileMethodOf = (method: PeftMethod): PeftMethod =>
  PEFT_METHODS.find((other) => DEFINITIONS[other].peft === DEFINITIONS[method].peft)!;

/** Of a recipe's values, those of a method's own keys that stages and files must have. */
export const settingsOf = (method: PeftMethod, recipe: object): StageSettings =>
  Object.fromEntries(DEFINITIONS[method].settings.map((key) => [camel(key), recipe[camel(key) as keyof object]]));

const SHAPES: Readonly<Record<Axes, (sizes: { in: number; out: number; rank: number }) => readonly number[]>> = {
  "rank in": ({ rank, in: width }) => [rank, width],
  "out rank": ({ out, rank }) => [out, rank],
  out: ({ out }) => [out],
  rank: ({ rank }) => [rank],
};

/**
 * The shape of a factor of a linear in a layer; without a layer that in all layers, which must be the same. Those of experts
 * that each has of its own lie next to each other along the rank.
 */
export const factorShape = (
  spec: ModelSpec,
  linear: Linear,
  factor: Factor,
  rank: number,
  layer: number | null = null,
  sharing: ExpertSharing = "shared-outer",
): readonly number[] => {
  const shape = linearShape(spec, linear, layer);
  const copies = isLowRank(factor) ? copiesOf(shape, factor as "A" | "B", sharing) : 1;
  return SHAPES[TENSORS[factor].axes]({ ...shape, rank: rank * copies });
};

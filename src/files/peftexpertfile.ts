// The tensors of an adapter in experts in a file of PEFT's, as the model and the file's config call for them: written, and read
// as the factors that experts share, or that each has.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isNamed } from "../base/targeting.ts";
import { GROUPS, groupsOfLayer, isExpertGroup, isOfExperts, type Linear, modulesOf } from "../families/linears.ts";
import type { Placed, PlacedAdapter } from "../methods/adapter.ts";
import { factorsIn, type LinearFactor } from "../methods/layout.ts";
import { rankAt, sharingOf } from "../methods/placement.ts";
import type { Factor } from "../methods/registry.ts";
import type { JsonObject } from "./json.ts";
import type { PeftAdapter } from "./peft.ts";
import {
  type ExpertTensors,
  expertPath,
  expertTensors,
  firstOf,
  fromExpertTensors,
  isRepeated,
  isSharedFactor,
  toExpertTensors,
} from "./peftexperts.ts";

/** In the file's metadata: which factors experts share, which its tensors, each repeated, do not always tell. */
export const SHARING = "mlora_experts";

/** Whether an adapter acts in both products of a layer's experts. */
function actsInBoth(spec: ModelSpec, adapter: Placed, layer: number): boolean {
  const has = (linears: readonly Linear[]) => linears.some((linear) => rankAt(adapter, layer, linear) > 0);
  const own = groupsOfLayer(spec, layer).filter(isExpertGroup);
  return own.length > 0 && own.every((group) => has(GROUPS[group]));
}

export const tensorsOf = (
  { spec, tower, isFused }: { readonly spec: ModelSpec; readonly tower: string; readonly isFused: boolean },
  adapter: Placed,
  { layer, linear, factor }: Omit<LinearFactor, "values">,
) =>
  expertTensors(
    { spec, tower, layer, linear, isFused },
    factor as "A" | "B",
    rankAt(adapter, layer, linear),
    actsInBoth(spec, adapter, layer),
  );

export function expertEntries(spec: ModelSpec, adapter: PeftAdapter, at: LinearFactor) {
  const { layer, linear, values } = at;
  const of = tensorsOf({ spec, tower: spec.tower, isFused: false }, adapter, at);
  const factor = at.factor as "A" | "B";
  const isShared = isSharedFactor(spec, layer, linear, factor, sharingOf(adapter));
  const parts = toExpertTensors(of, factor, values, isShared);
  return of.names.map((name, i) => ({ name, dtype: "f32" as const, shape: [...of.shape], data: parts[i]! }));
}

/** A model, how the file calls its tower, and whether its config names parameters of experts. */
export type Acts = { readonly spec: ModelSpec; readonly tower: string; readonly isFused: boolean };
/** Refuses what of `target_parameters` is no parameter of experts. */
export function checkParameters(config: JsonObject, path: string, { spec, tower }: Omit<Acts, "isFused">): void {
  const paths = modulesOf(spec).flatMap(({ layer, linear }) =>
    isOfExperts(linear) ? [expertPath({ spec, tower, layer, linear, isFused: true })] : [],
  );
  const other = (config["target_parameters"] as readonly unknown[]).find(
    (name) => typeof name !== "string" || !paths.some((of) => isNamed(of, [name])),
  );
  if (other === undefined) return;
  const what = paths.length === 0 ? "the base model has none" : `the base model has ${paths[0]} and others`;
  throw new RequestError(
    "peft.kind",
    `${path}: target_parameters has ${JSON.stringify(other)}, expected parameters of experts`,
    what,
  );
}

type FileValues = ReadonlyMap<string, Float32Array>;

const allExperts = (of: ExpertTensors, factor: Factor, values: FileValues): Float32Array =>
  fromExpertTensors(
    of,
    factor as "A" | "B",
    of.names.map((name) => values.get(name)!),
  );

/** A factor of a linear of experts; one that they share once. */
export function expertFactor(
  acts: Acts,
  adapter: PlacedAdapter,
  values: FileValues,
  at: Omit<LinearFactor, "values">,
): Float32Array {
  const of = tensorsOf(acts, adapter, at);
  const factor = at.factor as "A" | "B";
  const all = allExperts(of, factor, values);
  return isSharedFactor(acts.spec, at.layer, at.linear, factor, sharingOf(adapter)) ? firstOf(of, factor, all) : all;
}

/** The adapter as its experts share factors: not where the file has other values of what they would share. */
export function sharedAlike(acts: Acts, adapter: PlacedAdapter, values: FileValues): PlacedAdapter {
  const { spec } = acts;
  const isShared =
    sharingOf(adapter) === "shared-outer" &&
    factorsIn({ from: 0, to: spec.layers }, adapter.targets, "lora", adapter.places).every((at) => {
      const factor = at.factor as "A" | "B";
      if (!isOfExperts(at.linear) || !isSharedFactor(spec, at.layer, at.linear, factor, "shared-outer")) return true;
      const of = tensorsOf(acts, adapter, at);
      return isRepeated(of, factor, allExperts(of, factor, values));
    });
  return { ...adapter, places: { ...adapter.places!, experts: isShared ? "shared-outer" : "per-expert" } };
}

// Parts of a model: ranges of layers, which may begin and end within a layer, after its attention. There the residual stream is
// all that the rest of the layer reads, so that a stage of a pipeline can hand over as it does between two layers.

import { invariant } from "../base/errors.ts";
import { type LayerRange, layersIn } from "../base/layers.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Operation } from "./definition.ts";
import { GROUPS, type Group, groupsOf, type Linear } from "./linears.ts";
import { familyOf } from "./registry.ts";

/** The value that a layer begins with. */
export const INPUT = "x";

/** The values that an operation reads next to its input. */
export function othersOf(operation: Operation): readonly string[] {
  if (operation.op === "deltaRule") return [operation.gates];
  if (operation.op === "stateSpace") return [operation.steps];
  if (operation.op === "latentHeads") return [operation.queries, operation.shared];
  return "gate" in operation ? [operation.gate] : [];
}

/** The value that an operation adds to its output; null for none. */
export const residualOf = (operation: Operation): string | null =>
  "residual" in operation ? (operation.residual ?? null) : null;

/** How many operations of a layer come before the place within it; null where it has no such place. */
export function cutOf(operations: readonly Operation[]): number | null {
  const reads = operations.map((of) => [of.from, ...othersOf(of), residualOf(of)]);
  const at = operations.findIndex(({ to }, i) => {
    const later = new Set([to, ...operations.slice(i + 1).map((of) => of.to)]);
    return reads.slice(i + 1).every((names) => names.every((name) => name === null || later.has(name)));
  });
  return at + 1 === operations.length ? null : at + 1;
}

/**
 * Whether ranges may end within a layer of the model. Layers that share keys and values, or have inputs of their own, stay
 * whole.
 */
export const canCut = (spec: ModelSpec, layer: number): boolean =>
  spec.perLayer === null &&
  spec.kvSources.every((source) => source === null) &&
  cutOf(familyOf(spec).layer(spec, layer)) !== null;

/** The operations of a layer that lie in a range, from the value that the part begins with, INPUT. */
export function operationsIn(spec: ModelSpec, { from, to }: LayerRange, layer: number): readonly Operation[] {
  const all = familyOf(spec).layer(spec, layer);
  const [isLater, isEarlier] = [from > layer, to < layer + 1];
  if (!isLater && !isEarlier) return all;
  invariant(canCut(spec, layer), `layer ${layer} of a ${spec.family} model cannot be divided`);
  const cut = cutOf(all)!;
  if (isEarlier) return all.slice(0, cut);
  const stream = all[cut - 1]!.to;
  const renamed = (name: string | null) => (name === stream ? INPUT : name);
  return all.slice(cut).map((of) => {
    const read = { ...of, from: renamed(of.from)! };
    return "residual" in read ? ({ ...read, residual: renamed(residualOf(of)) } as Operation) : (read as Operation);
  });
}

/** The groups of linears of a layer that lie in a range. */
export const groupsIn = (spec: ModelSpec, layers: LayerRange, layer: number): readonly Group[] =>
  groupsOf(operationsIn(spec, layers, layer));

/** Whether a linear of a layer lies in a range. */
export const hasLinear = (spec: ModelSpec, layers: LayerRange, layer: number, linear: Linear): boolean =>
  layersIn(layers).includes(layer) && groupsIn(spec, layers, layer).some((group) => GROUPS[group].includes(linear));

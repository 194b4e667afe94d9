// The linear layers of all families, by the names that adapters target: all else that needs groups, paths or sizes of linears
// asks here.

import { invariant } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Groups, Op } from "./definition.ts";
import { FAMILIES, familyOf } from "./registry.ts";

type Last<Path extends string> = Path extends `${string}.${infer Rest}` ? Last<Rest> : Path;
type GroupsOf<F> = F extends { readonly groups: infer G } ? G : never;
type AllGroups = GroupsOf<(typeof FAMILIES)[keyof typeof FAMILIES]>;
type KeyOf<G> = G extends Groups ? keyof G & string : never;
type PathOf<G> = G extends Groups ? G[keyof G][number] : never;

/** Linears that read one input; each group is one matrix product. */
export type Group = KeyOf<AllGroups>;
/** A linear layer of a decoder layer, as PEFT names it: "q_proj". */
export type Linear = Last<PathOf<AllGroups>>;

const nameOf = (path: string): Linear => path.slice(path.lastIndexOf(".") + 1) as Linear;

/** Paths of each group; a group of one name is the same in all families. */
const PATHS: Readonly<Record<Group, readonly string[]>> = Object.assign(
  {},
  ...Object.values(FAMILIES).map(({ groups }) => groups),
);
/** Where each linear lies within its layer. */
const PLACES = new Map(Object.values(PATHS).flatMap((paths) => paths.map((path) => [nameOf(path), path] as const)));

export const GROUP_NAMES = Object.keys(PATHS) as readonly Group[];
export const GROUPS: Readonly<Record<Group, readonly Linear[]>> = Object.assign(
  {},
  ...GROUP_NAMES.map((group) => ({ [group]: PATHS[group].map(nameOf) })),
);
/** What an adapter may target, in the order of PEFT's names. */
export const LINEARS: readonly Linear[] = [...PLACES.keys()];

/** The path within a layer: "self_attn.q_proj", "mlp.up_proj". */
export const modulePath = (linear: Linear): string => PLACES.get(linear)!;

/** A linear's path in a Hugging Face model, which PEFT names it by: "model.layers.3.self_attn.q_proj". */
export const pathOf = (layer: number, linear: Linear): string => `model.layers.${layer}.${modulePath(linear)}`;

/** The groups of a model, in the order that numbers them. */
export const groupsOfModel = (spec: ModelSpec): readonly Group[] => Object.keys(familyOf(spec).groups) as Group[];
export const linearsOfModel = (spec: ModelSpec): readonly Linear[] => groupsOfModel(spec).flatMap((group) => GROUPS[group]);

const productsOf = (spec: ModelSpec, layer: number): readonly Op<"linears">[] =>
  familyOf(spec)
    .layer(spec, layer)
    .filter((operation) => operation.op === "linears");

export const groupsOfLayer = (spec: ModelSpec, layer: number): readonly Group[] =>
  productsOf(spec, layer).map(({ group }) => group as Group);

export type Module = { readonly layer: number; readonly linear: Linear; readonly path: string };

/** Every linear of every layer, in the model's order. */
export const modulesOf = (spec: ModelSpec): readonly Module[] =>
  range(spec.layers).flatMap((layer) =>
    groupsOfLayer(spec, layer).flatMap((group) =>
      GROUPS[group].map((linear) => ({ layer, linear, path: pathOf(layer, linear) })),
    ),
  );

const PRODUCTS = new WeakMap<ModelSpec, ReadonlyMap<string, Op<"linears">>>();

/** The product of a group, which has the same sizes in every layer that has it. */
function productOf(spec: ModelSpec, group: Group): Op<"linears"> {
  const found = (PRODUCTS.get(spec) ?? readProducts(spec)).get(group);
  invariant(found, `a ${spec.family} model has no group ${group}`);
  return found;
}

function readProducts(spec: ModelSpec): ReadonlyMap<string, Op<"linears">> {
  const products = new Map<string, Op<"linears">>();
  for (const product of range(spec.layers).flatMap((layer) => productsOf(spec, layer))) {
    const known = products.get(product.group) ?? product;
    const isSame = known.in === product.in && `${known.out}` === `${product.out}`;
    invariant(isSame, `the layers of a ${spec.family} model have ${product.group} of different sizes`);
    products.set(product.group, known);
  }
  PRODUCTS.set(spec, products);
  return products;
}

/** Input width, and where each linear of the group begins in the output (and where the last ends). */
export function groupShape(spec: ModelSpec, group: Group): { readonly in: number; readonly firstColumn: readonly number[] } {
  const { in: width, out } = productOf(spec, group);
  const firstColumn = [0];
  for (const features of out) firstColumn.push(firstColumn.at(-1)! + features);
  return { in: width, firstColumn };
}

/** Output and input features of a linear: its weight is [out, in]. */
export function linearShape(spec: ModelSpec, linear: Linear): { readonly out: number; readonly in: number } {
  const group = groupOf(linear);
  const { in: width, out } = productOf(spec, group);
  return { out: out[GROUPS[group].indexOf(linear)]!, in: width };
}

const groupOf = (linear: Linear): Group => GROUP_NAMES.find((group) => GROUPS[group].includes(linear))!;

// The linear layers of all families, by the names that adapters target: all else that needs groups, paths or sizes of linears
// asks here.

import { invariant } from "../base/errors.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { ExpertProduct, Groups, Op, Operation } from "./definition.ts";
import { FAMILIES, familyOf } from "./registry.ts";

type Last<Path extends string> = Path extends `${string}.${infer Rest}` ? Last<Rest> : Path;
type GroupsOf<F> = F extends { readonly groups: infer G } ? G : never;
type AllGroups = GroupsOf<(typeof FAMILIES)[keyof typeof FAMILIES]>;
type KeyOf<G> = G extends Groups ? keyof G & string : never;
type PathOf<G> = G extends Groups ? G[keyof G][number] : never;

/** Linears that read one input; each group is one matrix product. */
export type Group = KeyOf<AllGroups>;
/**
 * A linear layer of a decoder layer, by the last component of its path, "q_proj", which PEFT targets it by; or by its path
 * within the layer where a linear before it has the same last component.
 */
export type Linear = Last<PathOf<AllGroups>>;

/** Paths of each group; a group of one name is the same in all families. */
const PATHS: Readonly<Record<Group, readonly string[]>> = Object.assign(
  {},
  ...Object.values(FAMILIES).map(({ groups }) => groups),
);
/** Where each linear lies within its layer. */
const PLACES = new Map<Linear, string>();
for (const path of Object.values(PATHS).flat()) {
  const last = path.slice(path.lastIndexOf(".") + 1) as Linear;
  PLACES.set(PLACES.has(last) && PLACES.get(last) !== path ? (path as Linear) : last, path);
}
const NAMES = new Map([...PLACES].map(([linear, path]) => [path, linear]));

export const GROUP_NAMES = Object.keys(PATHS) as readonly Group[];
export const GROUPS: Readonly<Record<Group, readonly Linear[]>> = Object.assign(
  {},
  ...GROUP_NAMES.map((group) => ({ [group]: PATHS[group].map((path) => NAMES.get(path)!) })),
);
/** What an adapter may target, in the order of PEFT's names. */
export const LINEARS: readonly Linear[] = [...PLACES.keys()];

/** The path within a layer: "self_attn.q_proj", "mlp.up_proj". */
export const modulePath = (linear: Linear): string => PLACES.get(linear)!;

/** A linear's path in transformers' model, which PEFT names it by: "model.layers.3.self_attn.q_proj". */
export const pathOf = (tower: ModelSpec["tower"], layer: number, linear: Linear): string =>
  `${tower}.layers.${layer}.${modulePath(linear)}`;

/** The groups of a model, in the order that numbers them. */
export const groupsOfModel = (spec: Pick<ModelSpec, "family">): readonly Group[] =>
  Object.keys(familyOf(spec).groups) as Group[];
/** The linears that a family's layers may have. */
export const linearsOfModel = (spec: Pick<ModelSpec, "family">): readonly Linear[] => [
  ...new Set(groupsOfModel(spec).flatMap((group) => GROUPS[group])),
];

/** Those that some layer of the model has. */
export const linearsIn = (spec: ModelSpec): readonly Linear[] =>
  linearsOfModel(spec).filter((linear) => linearShapes(spec, linear).length > 0);

/** Linears that read one input; of experts those of each, and which factor all experts share in "shared-outer". */
type Product = Pick<Op<"linears">, "group" | "in" | "out"> & { readonly experts: number | null; readonly outer: "A" | "B" };

const productsOf = (operations: readonly Operation[]): readonly Product[] =>
  operations.flatMap((operation): readonly Product[] => {
    if (operation.op === "linears") return [{ ...operation, experts: null, outer: "A" }];
    if (operation.op !== "experts") return [];
    const { up, down, count: experts } = operation;
    return [
      { ...up, experts, outer: "A" },
      { ...down, experts, outer: "B" },
    ];
  });

export const groupsOf = (operations: readonly Operation[]): readonly Group[] =>
  productsOf(operations).map(({ group }) => group as Group);
export const groupsOfLayer = (spec: ModelSpec, layer: number): readonly Group[] => groupsOf(familyOf(spec).layer(spec, layer));

/** The linears of experts, in any family. */
const OF_EXPERTS = /(^|\.)experts\.|^block_sparse_moe\./;
export const isOfExperts = (linear: Linear): boolean => OF_EXPERTS.test(modulePath(linear));
export const isExpertGroup = (group: Group): boolean => GROUPS[group].every(isOfExperts);

export type Module = { readonly layer: number; readonly linear: Linear; readonly path: string };

/** Every linear of every layer, in the model's order. */
export const modulesOf = (spec: ModelSpec): readonly Module[] =>
  range(spec.layers).flatMap((layer) =>
    groupsOfLayer(spec, layer).flatMap((group) =>
      GROUPS[group].map((linear) => ({ layer, linear, path: pathOf(spec.tower, layer, linear) })),
    ),
  );

type Products = ReadonlyMap<string, Product>;
const PRODUCTS = new WeakMap<ModelSpec, readonly Products[]>();

/** Of each layer, its products by group. */
function productsByLayer(spec: ModelSpec): readonly Products[] {
  const known = PRODUCTS.get(spec);
  if (known) return known;
  const found = range(spec.layers).map(
    (layer) => new Map(productsOf(familyOf(spec).layer(spec, layer)).map((product) => [product.group, product] as const)),
  );
  PRODUCTS.set(spec, found);
  return found;
}

/** The product of a group in a layer; without a layer that of all layers, which must have the same sizes. */
function productOf(spec: ModelSpec, group: Group, layer: number | null): Product {
  const all = productsByLayer(spec);
  const [product, ...others] = (layer === null ? all : [all[layer]!]).flatMap((products) => products.get(group) ?? []);
  invariant(product, `${layer === null ? `a ${spec.family} model` : `layer ${layer}`} has no group ${group}`);
  const isSame = others.every((other) => other.in === product.in && `${other.out}` === `${product.out}`);
  invariant(isSame, `the layers of a ${spec.family} model have ${group} of different sizes`);
  return product;
}

/** Input width, and where each linear of the group begins in the output (and where the last ends). */
export function groupShape(
  spec: ModelSpec,
  group: Group,
  layer: number | null = null,
): { readonly in: number; readonly firstColumn: readonly number[] } {
  const { in: width, out } = productOf(spec, group, layer);
  const firstColumn = [0];
  for (const features of out) firstColumn.push(firstColumn.at(-1)! + features);
  return { in: width, firstColumn };
}

/**
 * Output and input features of a linear: its weight is [out, in]. Of a linear of experts that of each, their number, and the
 * factor that all of them share in "shared-outer"; null for others.
 */
export type LinearShape = {
  readonly out: number;
  readonly in: number;
  readonly experts: number | null;
  readonly outer: "A" | "B";
};

/** The shape of a linear in a layer; without a layer that in all layers, which must be the same. */
export function linearShape(spec: ModelSpec, linear: Linear, layer: number | null = null): LinearShape {
  const shapes = layer === null ? linearShapes(spec, linear) : shapesIn(productsByLayer(spec)[layer]!, linear);
  const [shape, ...others] = shapes;
  invariant(shape, `${layer === null ? `a ${spec.family} model` : `layer ${layer}`} has no ${linear}`);
  const isSame = others.every((other) => other.in === shape.in && other.out === shape.out);
  invariant(isSame, `the layers of a ${spec.family} model have ${linear} of different sizes`);
  return shape;
}

/** The shape of a linear among the products of a layer, which has it in one group or not at all. */
const shapesIn = (products: Products, linear: Linear): readonly LinearShape[] =>
  [...products.values()].flatMap(({ group, in: width, out, experts, outer }) => {
    const index = GROUPS[group as Group].indexOf(linear);
    return index < 0 ? [] : [{ out: out[index]!, in: width, experts, outer }];
  });

/** The shapes of a linear in the layers that have it. */
export const linearShapes = (spec: ModelSpec, linear: Linear): readonly LinearShape[] =>
  productsByLayer(spec).flatMap((products) => shapesIn(products, linear));

/** The shapes of a group in the layers that have it. */
export const groupShapes = (spec: ModelSpec, group: Group): readonly ReturnType<typeof groupShape>[] =>
  productsByLayer(spec).flatMap((products, layer) => (products.has(group) ? [groupShape(spec, group, layer)] : []));

/** The experts of all layers that have some. */
export const expertsOf = (spec: ModelSpec): readonly Op<"experts">[] =>
  spec.experts === null
    ? []
    : range(spec.layers).flatMap((layer) =>
        familyOf(spec)
          .layer(spec, layer)
          .filter((of) => of.op === "experts"),
      );

/** A linear of a layer's experts: its product, its place in it, and both of the layer's products. */
export function expertLinear(spec: ModelSpec, layer: number, linear: Linear) {
  const of = familyOf(spec)
    .layer(spec, layer)
    .find((operation) => operation.op === "experts");
  invariant(of, `layer ${layer} has no experts`);
  const { up, down, count: experts } = of;
  const product = [up, down].find(({ group }) => GROUPS[group as Group].includes(linear));
  invariant(product, `${linear} is no linear of experts`);
  const outer = product === up ? "A" : "B";
  return { product, index: GROUPS[product.group as Group].indexOf(linear), experts, outer, up, down } as const;
}

/** The products of a model's experts. */
export const expertProducts = (spec: ModelSpec): readonly ExpertProduct[] =>
  expertsOf(spec).flatMap(({ up, down }) => [up, down]);

/** Elements of all weights of these operations that a token passes. */
export const weightsPassed = (operations: readonly Operation[]): number =>
  sum(
    operations.map((of) => {
      if (of.op === "linears") return sum(of.out) * of.in;
      if (of.op !== "experts") return 0;
      return of.count * of.up.in + of.perToken * (sum(of.up.out) * of.up.in + sum(of.down.out) * of.down.in);
    }),
  );

/** The same of all layers. */
export const linearElements = (spec: ModelSpec): number =>
  sum(range(spec.layers).map((layer) => weightsPassed(familyOf(spec).layer(spec, layer))));

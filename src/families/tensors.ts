// The tensors of a model's files, by the names of its family.

import type { ModelSpec } from "../base/spec.ts";
import type { NormOffset, Op, Operation } from "./definition.ts";
import { GROUPS, type Group, type Linear, modulePath } from "./linears.ts";
import { familyOf } from "./registry.ts";

/** What a decoder layer reads: weights of norms [size], and of linears [out, in] with a bias [out] or none. Names are whole. */
export type LayerTensors = {
  readonly norms: readonly {
    /** Null for a norm without weights, which are ones. */
    readonly weight: string | null;
    readonly name: string | null;
    readonly size: number;
    readonly offset: NormOffset;
  }[];
  /** Numbers f32[1]. */
  readonly factors: readonly { readonly factor: string; readonly name: string }[];
  readonly groups: readonly {
    readonly group: Group;
    readonly in: number;
    readonly linears: readonly { readonly name: string; readonly out: number }[];
    readonly bias: boolean;
  }[];
};

const isOp =
  <K extends Operation["op"]>(kind: K) =>
  (operation: Operation): operation is Op<K> =>
    operation.op === kind;

/** `weight` and `group` are as the layer's operations name them. */
export function layerTensors(spec: ModelSpec, layer: number): LayerTensors {
  const { layer: operationsOf, tensors } = familyOf(spec);
  const operations = operationsOf(spec, layer);
  const at = `${tensors.layers}.${layer}`;
  const norm = (weight: string | null, size: number, offset: NormOffset = 0) => {
    return { weight, name: weight && `${at}.${weight}.weight`, size, offset };
  };
  return {
    norms: [
      ...operations.filter(isOp("norm")).map(({ weight, size, offset }) => norm(weight, size, offset)),
      ...operations.filter(isOp("rope")).flatMap(({ norms, heads }) => {
        return norms ? [norms.q, norms.k].map((weight) => norm(weight, heads.headDim, norms.offset)) : [];
      }),
      ...operations.filter(isOp("spans")).flatMap(({ weights, sizes }) => weights.map((weight, i) => norm(weight, sizes[i]!))),
    ],
    factors: operations.filter(isOp("scale")).map(({ factor }) => ({ factor, name: `${at}.${factor}` })),
    groups: operations.filter(isOp("linears")).map(({ group, in: width, out, bias }) => ({
      group: group as Group,
      in: width,
      linears: GROUPS[group as Group].map((linear, i) => ({ name: `${at}.${modulePath(linear)}`, out: out[i]! })),
      bias,
    })),
  };
}

/** Every tensor of a model, by Hugging Face's name, with its shape. */
export function tensorShapes(spec: ModelSpec): Map<string, readonly number[]> {
  const { embedding, norm, head, own } = familyOf(spec).tensors;
  const shapes = new Map<string, readonly number[]>([[embedding, [spec.vocab, spec.hidden]]]);
  for (let layer = 0; layer < spec.layers; layer++) {
    const { norms, factors, groups } = layerTensors(spec, layer);
    for (const { name, size } of norms) if (name !== null) shapes.set(name, [size]);
    for (const { name } of factors) shapes.set(name, [1]);
    for (const { in: width, linears, bias } of groups)
      for (const { name, out } of linears) {
        shapes.set(`${name}.weight`, [out, width]);
        if (bias) shapes.set(`${name}.bias`, [out]);
      }
  }
  const { layers, hidden, perLayer } = spec;
  if (own && perLayer) {
    shapes.set(own.table, [perLayer.vocab, layers * perLayer.size]);
    shapes.set(own.projection, [layers * perLayer.size, hidden]);
    shapes.set(own.norm, [perLayer.size]);
  }
  shapes.set(norm, [spec.hidden]);
  if (!spec.tiedEmbeddings) shapes.set(head, [spec.vocab, spec.hidden]);
  return shapes;
}

/** The name of a linear's weight. */
export const weightName = (spec: ModelSpec, layer: number, linear: Linear): string =>
  `${familyOf(spec).tensors.layers}.${layer}.${modulePath(linear)}.weight`;

/** The paths of the modules that hold the embedding and the output head, which is one where it is tied. */
export type TableModules = { readonly embedding: string; readonly head: string };

/** `tower`: how the layers' module is called. */
export function tableModules(spec: Pick<ModelSpec, "family" | "tower">, tower = spec.tower): TableModules {
  const { embedding, head } = familyOf(spec).tensors;
  const module = (name: string) => name.replace(/\.weight$/, "");
  return { embedding: module(embedding).replace(/^model\b/, tower), head: module(head) };
}

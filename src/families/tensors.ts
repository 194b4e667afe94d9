// The tensors of a model's files, by the names of its family.

import type { LayerRange } from "../base/layers.ts";
import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { ExpertProduct, NormOffset, Op, Operation } from "./definition.ts";
import { GROUPS, type Group, type Linear, modulePath } from "./linears.ts";
import { operationsIn } from "./parts.ts";
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
  /** Numbers and vectors, f32 on every device; `shape` is that in the files. */
  readonly factors: readonly { readonly factor: string; readonly name: string; readonly shape: readonly number[] }[];
  readonly groups: readonly {
    readonly group: Group;
    readonly in: number;
    readonly linears: readonly { readonly name: string; readonly out: number }[];
    readonly bias: boolean;
  }[];
  /** Null where the layer has none. */
  readonly experts: ExpertTensors | null;
};

/** Where an expert's linear [out, in] lies in a tensor: that of all experts, or its own. */
export type ExpertPart = {
  readonly name: string;
  readonly out: number;
  /** Elements before it; and whether it is [in, out] there. */
  readonly first: number;
  readonly isTurned: boolean;
};

export type ExpertTensors = {
  readonly count: number;
  readonly router: { readonly path: string; readonly name: string; readonly size: number; readonly bias: string | null };
  readonly products: Readonly<
    Record<
      "up" | "down",
      {
        readonly in: number;
        readonly out: readonly number[];
        readonly files: ExpertProduct["files"];
        /** The linears of each expert. */
        readonly parts: readonly (readonly ExpertPart[])[];
        /** [E, out] */
        readonly bias: string | null;
      }
    >
  >;
};

const isOp =
  <K extends Operation["op"]>(kind: K) =>
  (operation: Operation): operation is Op<K> =>
    operation.op === kind;

/** What an operation reads of the files next to norms and linears: the path within the layer, and the shape. */
function factorsOf(of: Operation): readonly (readonly [factor: string, ...shape: number[]])[] {
  if (of.op === "scale") return [[of.factor, 1]];
  if (of.op === "attention") return of.sinks ? [[of.sinks, of.heads.heads]] : [];
  if (of.op === "experts") return of.correction === null ? [] : [[of.correction, of.count]];
  if (of.op === "shortConvolution") return [[of.weight, of.channels, 1, of.taps]];
  if (of.op === "convolution")
    return [[of.weight, of.channels, 1, of.taps], ...(of.bias === null ? [] : [[of.bias, of.channels] as const])];
  if (of.op === "stateSpace") return [of.decay, of.bias, of.skip].map((vector) => [vector, of.heads.heads] as const);
  if (of.op === "tokenGate") return [[of.weight, 1, of.size]];
  if (of.op === "deltaRule") return [of.decay, of.bias].map((vector) => [vector, of.heads.valueHeads] as const);
  return [];
}

/** Of a layer, or of the part of it that lies in a range. `weight` and `group` are as its operations name them. */
export function layerTensors(
  spec: ModelSpec,
  layer: number,
  layers: LayerRange = { from: layer, to: layer + 1 },
): LayerTensors {
  const { tensors } = familyOf(spec);
  const operations = operationsIn(spec, layers, layer);
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
      ...operations.filter(isOp("groupNorm")).map(({ weight, size }) => norm(weight, size)),
      ...operations.filter(isOp("gatedNorm")).map(({ weight, size }) => norm(weight, size)),
      ...operations.filter(isOp("spans")).flatMap(({ weights, sizes }) => weights.map((weight, i) => norm(weight, sizes[i]!))),
    ],
    factors: operations.flatMap(factorsOf).map(([factor, ...shape]) => ({ factor, name: `${at}.${factor}`, shape })),
    experts: operations.filter(isOp("experts")).map((of) => expertTensors(of, at))[0] ?? null,
    groups: operations.filter(isOp("linears")).map(({ group, in: width, out, bias }) => ({
      group: group as Group,
      in: width,
      linears: GROUPS[group as Group].map((linear, i) => ({ name: `${at}.${modulePath(linear)}`, out: out[i]! })),
      bias,
    })),
  };
}

function expertTensors({ count, routerPath, routerBias, up, down }: Op<"experts">, at: string): ExpertTensors {
  const product = (of: ExpertProduct) => ({
    in: of.in,
    out: of.out,
    files: of.files,
    parts: range(count).map((expert) => of.linears.map((_, i) => expertPart(of, at, expert, i))),
    bias: of.bias ? `${at}.${of.path}.${of.linears[0]}_bias` : null,
  });
  const router = `${at}.${routerPath}`;
  return {
    count,
    router: { path: routerPath, name: `${router}.weight`, size: up.in, bias: routerBias ? `${router}.bias` : null },
    products: { up: product(up), down: product(down) },
  };
}

function expertPart(
  { path, linears, files, in: width, out }: ExpertProduct,
  at: string,
  expert: number,
  i: number,
): ExpertPart {
  if (files === "each")
    return { name: `${at}.${path}.${expert}.${linears[i]}.weight`, out: out[i]!, first: 0, isTurned: false };
  const first = expert * sum(out) * width;
  return { name: `${at}.${path}.${linears[i]}`, out: out[i]!, first, isTurned: files === "columns" };
}

/** The tensors of a layer's experts, with their shapes. */
function expertShapes({ count, router, products }: ExpertTensors): [string, readonly number[]][] {
  const shapes: [string, readonly number[]][] = [[router.name, [count, router.size]]];
  if (router.bias !== null) shapes.push([router.bias, [count]]);
  for (const { in: width, out, files, parts, bias } of Object.values(products)) {
    const whole: readonly number[] = files === "columns" ? [count, width, sum(out)] : [count, sum(out), width];
    for (const { name, out: rows } of parts.flat()) shapes.push([name, files === "each" ? [rows, width] : whole]);
    if (bias !== null) shapes.push([bias, [count, sum(out)]]);
  }
  return shapes;
}

/** Those of the first layer with experts. */
export function expertTensorShapes(spec: ModelSpec): readonly (readonly [string, readonly number[]])[] {
  const first = spec.experts!.layers.indexOf(true);
  return first < 0 ? [] : expertShapes(layerTensors(spec, first).experts!);
}

/** Every tensor of a model, by Hugging Face's name, with its shape. */
export function tensorShapes(spec: ModelSpec): Map<string, readonly number[]> {
  const { embedding, norm, head, own } = familyOf(spec).tensors;
  const shapes = new Map<string, readonly number[]>([[embedding, [spec.vocab, spec.hidden]]]);
  for (let layer = 0; layer < spec.layers; layer++) {
    const { norms, factors, groups, experts } = layerTensors(spec, layer);
    for (const { name, size } of norms) if (name !== null) shapes.set(name, [size]);
    for (const { name, shape } of factors) shapes.set(name, shape);
    for (const [name, shape] of experts ? expertShapes(experts) : []) shapes.set(name, shape);
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

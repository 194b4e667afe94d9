// Adapters in experts as PEFT has them in files. Models whose files have each expert's linears apart have an A and a B for each
// of these: "experts.3.gate_proj.lora_A.weight". Where one tensor has those of all experts, so have A [rank E, in], expert by
// expert, and B [out, rank E], rank by rank: PEFT's target_parameters. Two such parameters of one module are wrapped one in the
// other, the first one inside: "experts.base_layer.lora_A.weight".
//
// Here A is [E rank, in] and B is [out, E rank], expert by expert, or one for all experts (methods/sharing.ts), which files
// have as often as there are experts.

import { range, sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { ExpertProduct } from "../families/definition.ts";
import { expertLinear, GROUPS, type Group, type Linear, modulePath } from "../families/linears.ts";
import { copiesOf, type ExpertSharing } from "../methods/sharing.ts";

type Factor = "A" | "B";
type Of = {
  readonly spec: ModelSpec;
  readonly tower: string;
  readonly layer: number;
  readonly linear: Linear;
  /**
   * Of a model whose files have each expert's linears apart: the adapter is of transformers 5's model, which has one parameter
   * for gate and up of all experts, and one for down.
   */
  readonly isFused?: boolean;
};

/** How transformers 5 calls them, in all models whose files have each expert's linears apart. */
const FUSED = { module: "mlp.experts", up: "gate_up_proj", down: "down_proj" } as const;

/** The path that `target_modules` and the patterns of ranks match: the first expert's linear, or the parameter. */
export function expertPath({ spec, tower, layer, linear, isFused }: Of): string {
  const { product, index, up } = expertLinear(spec, layer, linear);
  if (isFused && product.files === "each")
    return `${tower}.layers.${layer}.${FUSED.module}.${FUSED[product === up ? "up" : "down"]}`;
  const at = `${tower}.layers.${layer}`;
  return product.files === "each" ? `${at}.${product.path}.0.${product.linears[index]}` : `${at}.${modulePath(linear)}`;
}

/** The parameter within a layer that has a linear of all experts; null where files have each expert's apart. */
export function parameterOf(spec: ModelSpec, layer: number, linear: Linear): string | null {
  const { product } = expertLinear(spec, layer, linear);
  return product.files === "each" ? null : modulePath(linear);
}

/** Tensors of a file that make one factor: of each expert, or one with those of all. */
export type ExpertTensors = {
  readonly names: readonly string[];
  readonly shape: readonly [number, number];
  readonly experts: number;
  readonly rank: number;
  /** The first row of B that is the linear's, where the tensor has those of gate and up. */
  readonly firstRow: number;
  readonly out: number;
};

/** The module that has a product's parameter. */
const moduleOf = ({ group }: ExpertProduct): string => modulePath(GROUPS[group as Group][0]!).replace(/\.[^.]*$/, "");

/** `isBoth`: whether the adapter acts in both products of the layer. */
export function expertTensors(of: Of, factor: Factor, rank: number, isBoth: boolean): ExpertTensors {
  const { spec, tower, layer, linear } = of;
  const { product, index, experts, up, down } = expertLinear(spec, layer, linear);
  const isFused = of.isFused === true && product.files === "each";
  const at = `base_model.model.${tower}.layers.${layer}`;
  const end = `lora_${factor}.weight`;
  const [width, out] = [product.in, product.out[index]!];
  const own = { experts, rank, firstRow: 0, out };
  if (product.files === "each" && !isFused)
    return {
      names: range(experts).map((expert) => `${at}.${product.path}.${expert}.${product.linears[index]}.${end}`),
      shape: factor === "A" ? [rank, width] : [out, rank],
      ...own,
    };
  const modules = isFused ? [FUSED.module, FUSED.module] : [moduleOf(up), moduleOf(down)];
  const isInner = isBoth && product === up && modules[0] === modules[1];
  return {
    names: [`${at}.${modules[product === up ? 0 : 1]}.${isInner ? "base_layer." : ""}${end}`],
    shape: factor === "A" ? [rank * experts, width] : [isFused ? sum(product.out) : out, rank * experts],
    ...{ ...own, firstRow: isFused ? sum(product.out.slice(0, index)) : 0 },
  };
}

/** B [out, E rank] expert by expert from B [out, rank E] rank by rank, or, `back`, the other way. */
function reordered(b: Float32Array, { experts, rank }: Pick<ExpertTensors, "experts" | "rank">, back: boolean): Float32Array {
  const to = new Float32Array(b.length);
  const width = experts * rank;
  for (let row = 0; row < b.length; row += width)
    for (let expert = 0; expert < experts; expert++)
      for (let j = 0; j < rank; j++) {
        const [ours, theirs] = [row + expert * rank + j, row + j * experts + expert];
        if (back) to[theirs] = b[ours]!;
        else to[ours] = b[theirs]!;
      }
  return to;
}

/** One expert's factor out of all experts', A [E rank, in] or B [out, E rank]. */
export function oneExpert(factor: Factor, all: Float32Array, rank: number, expert: number, experts: number): Float32Array {
  const size = all.length / experts;
  if (factor === "A") return all.slice(expert * size, (expert + 1) * size);
  const own = new Float32Array(size);
  for (let row = 0; row < size / rank; row++) {
    const first = (row * experts + expert) * rank;
    own.set(all.subarray(first, first + rank), row * rank);
  }
  return own;
}

/** What the file has of a factor, tensor by tensor; one that all experts share is repeated. */
export function toExpertTensors(of: ExpertTensors, factor: Factor, values: Float32Array, isShared: boolean): Float32Array[] {
  const { names, experts, rank } = of;
  if (names.length > 1) {
    if (isShared) return names.map(() => values);
    return names.map((_, expert) => oneExpert(factor, values, rank, expert, experts));
  }
  const all = isShared ? repeated(factor, values, of) : values;
  return [factor === "A" ? all : reordered(all, { experts, rank }, true)];
}

function repeated(factor: Factor, values: Float32Array, { experts, rank }: ExpertTensors): Float32Array {
  const all = new Float32Array(values.length * experts);
  for (const e of range(experts))
    if (factor === "A") all.set(values, e * values.length);
    else
      for (let row = 0; row < values.length / rank; row++)
        all.set(values.subarray(row * rank, (row + 1) * rank), (row * experts + e) * rank);
  return all;
}

/** The factors of all experts, A [E rank, in] or B [out, E rank]. */
export function fromExpertTensors(of: ExpertTensors, factor: Factor, tensors: readonly Float32Array[]): Float32Array {
  const { names, experts, rank } = of;
  if (names.length === 1) {
    if (factor === "A") return tensors[0]!;
    const width = experts * rank;
    return reordered(tensors[0]!.subarray(of.firstRow * width, (of.firstRow + of.out) * width), of, false);
  }
  const all = new Float32Array(tensors[0]!.length * experts);
  for (const [e, values] of tensors.entries())
    if (factor === "A") all.set(values, e * values.length);
    else
      for (let row = 0; row < values.length / rank; row++)
        all.set(values.subarray(row * rank, (row + 1) * rank), (row * experts + e) * rank);
  return all;
}

/** Whether all experts have the same factor. */
export function isRepeated(of: ExpertTensors, factor: Factor, all: Float32Array): boolean {
  const first = firstOf(of, factor, all);
  const again = repeated(factor, first, of);
  return all.every((value, i) => value === again[i]);
}

/** The first expert's factor. */
export const firstOf = ({ rank, experts }: ExpertTensors, factor: Factor, all: Float32Array): Float32Array =>
  oneExpert(factor, all, rank, 0, experts);

/** Whether a factor of a linear is one for all experts. */
export const isSharedFactor = (
  spec: ModelSpec,
  layer: number,
  linear: Linear,
  factor: Factor,
  sharing: ExpertSharing,
): boolean => copiesOf(expertLinear(spec, layer, linear), factor, sharing) === 1;

// A decoder layer's operations, resolved when a stage opens: the widths of its values, their memory, and where their gradients
// lie.
//
// Values that are cheap to compute again share working memory by kind, unless they are kept, and so do gradients: each must be
// read before the next is written. `resolve` refuses layers in which that, or overwriting a value, would change what is
// computed.

import { invariant } from "../../base/errors.ts";
import { type LayerRange, layersIn } from "../../base/layers.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { isExperts, isLinears, type Op, type Operation } from "../../families/definition.ts";
import { canCut, INPUT, operationsIn, othersOf, residualOf } from "../../families/parts.ts";
import { behaviourOf } from "../operations/operations.ts";

/** The working memory of the stream's gradient. */
export const STREAM = "stream";
/** That of what linears add to a gradient of this width. */
export const addedOf = (width: number): string => `added.${width}`;

export type Value = {
  readonly width: number;
  /** The operation that computes it; null for the layer's input. */
  readonly made: Operation | null;
  /** The value whose memory it has: its own name, or that of the value that was overwritten. */
  readonly memory: string;
  /** Values of one kind share working memory where they are not kept. */
  readonly kind: string;
  /** Whether adapters may act before it in its layer, so that its gradient is needed in the model's first layer, too. */
  readonly isTrained: boolean;
};

/** In working memory of this kind, or where a value lies, which is overwritten. */
export type GradientPlace = { readonly work: string } | { readonly value: string };

/** Of a layer, or of a part of one, where a stage has no more of it. */
export type LayerProgram = {
  readonly layer: number;
  readonly operations: readonly Operation[];
  /** The same in the order of the backward pass. */
  readonly reversed: readonly Operation[];
  readonly values: ReadonlyMap<string, Value>;
  /** SwiGLU between two products and read by nothing else, by its input and by its output. */
  readonly activations: ReadonlyMap<string, Activation>;
  readonly gradients: ReadonlyMap<string, GradientPlace>;
  /** Operations that add to a gradient which another has begun. */
  readonly adding: ReadonlySet<Operation>;
  /** The last value, which is the next layer's input, or that of the layer's other part; and the value whose memory it has. */
  readonly output: string;
  readonly outputMemory: string;
};

/** SwiGLU between two products: `from` gate and up, `to` what it makes. */
export type Activation = {
  readonly from: string;
  readonly to: string;
  readonly up: Op<"linears">;
  readonly down: Op<"linears">;
};

/** The layers of a stage, or halves of them. */
export type Program = readonly LayerProgram[];

export const programOf = (spec: ModelSpec, layers: LayerRange): Program =>
  layersIn(layers).map((layer) => resolve(operationsIn(spec, layers, layer), layer, spec.hidden));

/** The same as halves of layers, where these can be cut: what only inputs are kept of is computed again in smaller pieces. */
export const halvesOf = (spec: ModelSpec, { from, to }: LayerRange): Program =>
  layersIn({ from, to }).flatMap((layer) => {
    const [first, last] = [Math.max(from, layer), Math.min(to, layer + 1)];
    const places = [first, ...(last - first === 1 && canCut(spec, layer) ? [layer + 0.5] : []), last];
    return places
      .slice(1)
      .map((end, i) => resolve(operationsIn(spec, { from: places[i]!, to: end }, layer), layer, spec.hidden));
  });

const isAdapted = (operation: Operation): boolean => isLinears(operation) || isExperts(operation);
/** Those whose backward pass has their input computed again where it is not kept. */
const restores = (operation: Operation): boolean =>
  isAdapted(operation) || operation.op === "deltaRule" || operation.op === "stateSpace";

/** Those whose backward pass has the value that they read next to their input computed again where it is not kept. */
const restoresOther = (operation: Operation): boolean => operation.op === "tokenGate";

/** Operations that write the gradient of some columns of their input, of which another has written the rest. */
const FILLING: ReadonlySet<Operation["op"]> = new Set(["ungated", "convolution", "columns"]);

/** Throws an Error where operations do not fit together. */
export function resolve(operations: readonly Operation[], layer: number, hidden: number): LayerProgram {
  const values = new Map<string, Value>();
  values.set(INPUT, { width: hidden, made: null, memory: INPUT, kind: INPUT, isTrained: false });
  const overwritten = new Set<string>();
  const current = new Map<string, string>(); // of each kind that is cheap, the last value
  for (const operation of operations) {
    const { from, to } = operation;
    const { width, isInPlace, isCheap, fits } = behaviourOf(operation);
    const input = values.get(from);
    const at = `layer ${layer}: ${operation.op} from ${from} to ${to}`;
    invariant(input && !values.has(to), `${at}: a value is read before it is computed, or computed twice`);
    invariant(!overwritten.has(from), `${at}: its input has been overwritten`);
    const last = current.get(input.kind);
    invariant(last === undefined || (last === from && restores(operation)), `${at}: its input may have to be computed again`);
    const others = othersOf(operation).map((name) => {
      const other = values.get(name);
      invariant(other && !overwritten.has(name), `${at}: ${name} is read before it is computed`);
      const now = current.get(other.kind);
      const isThere = now === undefined || (now === name && restoresOther(operation));
      invariant(isThere, `${at}: ${name} may have to be computed again`);
      return other;
    });
    const isFit = others.length === 0 || fits!(operation, input.width, ...others.map((other) => other.width));
    invariant(isFit, `${at}: ${othersOf(operation)} are of other widths`);
    if (isInPlace?.(operation)) overwritten.add(from);
    const residual = residualOf(operation);
    invariant(residual === null || values.has(residual), `${at}: ${residual} is added before it is computed`);
    const made = width(operation, input.width);
    const kind = `${isCheap(operation) ? "" : "kept "}${operation.op}.${made}`;
    if (isCheap(operation)) current.set(kind, to);
    values.set(to, {
      width: made,
      made: operation,
      memory: isInPlace?.(operation) ? input.memory : to,
      kind,
      isTrained: input.isTrained || isAdapted(operation) || others.some((other) => other.isTrained),
    });
  }
  const output = operations.at(-1)!.to;
  invariant(values.get(output)!.width === hidden, `layer ${layer} ends with ${output}, which is no stream`);
  const reversed = operations.toReversed();
  const outputMemory = values.get(output)!.memory;
  const activations = activationsOf(operations);
  return {
    layer,
    operations,
    reversed,
    values,
    activations,
    output,
    outputMemory,
    ...resolveGradients(reversed, values, output),
  };
}

/** Those that lie between two products, one after the other. */
function activationsOf(operations: readonly Operation[]): ReadonlyMap<string, Activation> {
  const reads = (name: string) => operations.filter((of) => [of.from, ...othersOf(of), residualOf(of)].includes(name)).length;
  const found = operations.flatMap((of, i) => {
    const [up, down] = [operations[i - 1], operations[i + 1]];
    if (of.op !== "swiglu" || !up || !down || !isLinears(up) || !isLinears(down)) return [];
    const isBetween = up.to === of.from && down.from === of.to && reads(of.from) === 1 && reads(of.to) === 1;
    return isBetween ? [{ from: of.from, to: of.to, up, down }] : [];
  });
  return new Map(found.flatMap((of) => [[of.from, of] as const, [of.to, of] as const]));
}

/** From the last operation to the first: each finds the gradient of its output and leaves that of its input. */
function resolveGradients(reversed: readonly Operation[], values: ReadonlyMap<string, Value>, output: string) {
  const gradients = new Map<string, GradientPlace>([[output, { work: STREAM }]]);
  const adding = new Set<Operation>();
  const busy = new Map<string, string>(); // working memory, and the value whose gradient it holds
  for (const operation of reversed) {
    const { from, to } = operation;
    const own = gradients.get(to);
    invariant(own, `nothing reads ${to}`);
    const residual = residualOf(operation);
    if (residual !== null) {
      invariant(!gradients.has(residual), `${residual} is read after it is added to ${to}`);
      gradients.set(residual, own);
    }
    const take = (name: string, kind: string) => {
      invariant(!busy.has(kind), `the gradients of ${busy.get(kind)} and ${name} are needed at once`);
      busy.set(kind, name);
    };
    const { inputGradient, otherGradient } = behaviourOf(operation);
    for (const other of othersOf(operation)) {
      const adds = otherGradient === "added";
      invariant(gradients.has(other) === adds, `${operation.op} cannot ${adds ? "begin" : "add to"} the gradient of ${other}`);
      const { kind } = values.get(other)!;
      if (otherGradient === "own") take(other, kind);
      if (!adds) gradients.set(other, otherGradient === "own" ? { work: kind } : { value: other });
    }
    if (gradients.has(from)) {
      const isNorm = operation.op === "norm" && "work" in gradients.get(from)!;
      const canAdd = isNorm || isAdapted(operation) || FILLING.has(operation.op);
      invariant(canAdd, `${operation.op} cannot add to the gradient of ${from}`);
      adding.add(operation);
    } else {
      const { kind } = values.get(from)!;
      const places = { own: { work: kind }, output: own, input: { value: from } };
      const place = places[inputGradient];
      gradients.set(from, place);
      if (place === places.own) take(from, kind);
    }
    for (const [kind, name] of busy)
      if (name !== to) continue;
      else if (gradients.get(from) === own) busy.set(kind, from);
      else busy.delete(kind);
  }
  return { gradients, adding };
}

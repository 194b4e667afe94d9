// The frozen weights of a range of layers on a device, and which tensors of a Hugging Face model fill them.
//
// Linears that share an input lie under each other in one matrix, so that each group is one product. Where they are packed,
// each is filled as the device computes, then packed, one after the other: no more than one of them is ever held twice.

import { bytesOf, type DType } from "../base/dtype.ts";
import type { HeldWeights, PackedFormat, WeightFormat } from "../base/precision.ts";
import { maxOf, range, sizeOf, sum } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import type { StageSetup } from "../bus/messages.ts";
import { Arena, arenaBytes, rowsFrom } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { NF4_BLOCK, type PackedWeight, partsOf, type Weight } from "../device/packed.ts";
import type { Definition, NormOffset } from "../families/definition.ts";
import { type Group, linearShapes, linearsOfModel } from "../families/linears.ts";
import { familyOf } from "../families/registry.ts";
import { type LayerTensors, layerTensors } from "../families/tensors.ts";
import { toBf16, toF32 } from "../files/convert.ts";
import { quantise } from "../ops/packed.ts";
import { type OwnInputWeights, ownInputFactors } from "./own-inputs.ts";

export type LinearWeights = { readonly weight: Weight; readonly bias: Tensor | null };

export type LayerWeights = {
  /** By normKey. */
  readonly norms: ReadonlyMap<string, Tensor>;
  /** f32[1] each. */
  readonly factors: ReadonlyMap<string, Tensor>;
  readonly linears: Readonly<Record<Group, LinearWeights>>;
};

export type Weights = {
  /** [tableRows, H]; null where neither the embedding nor a tied head is on this stage. */
  readonly embedding: Tensor | null;
  /** f32[1], a number of the device's compute type; null where rows of the embedding are taken as they are. */
  readonly embeddingScale: Tensor | null;
  /** f32[H] of ones; null where the embedding has no norm. */
  readonly embeddingNorm: Tensor | null;
  /** Null where layers have no inputs of their own; else on every stage. */
  readonly own: OwnInputWeights | null;
  readonly layers: readonly LayerWeights[]; // of this stage, in order
  readonly finalNorm: Tensor | null;
  readonly head: Tensor | null;
};

/** Which part of the model a stage holds. */
export type StageLayers = StageSetup["layerRange"];
export const wholeModel = ({ layers }: ModelSpec): StageLayers => ({ from: 0, to: layers, first: true, last: true });

/** A tensor on the device and the tensors of the files that fill it, under each other; rows beyond them are zeros. */
type Slot = {
  readonly shape: readonly number[];
  readonly from: readonly { readonly name: string; readonly rows: number }[];
  /** Of the weight of a norm, which is f32 on every device: 1 + w would lose w's digits in bf16. */
  readonly offset?: NormOffset;
};

const normSlot = (name: string | null, size: number, offset: NormOffset): Slot => ({
  shape: [size],
  from: name === null ? [] : [{ name, rows: size }],
  offset: name === null ? 1 : offset,
});
/** What the norms of a layer are known by: the path of their weights, or their size where they have none. */
export const normKey = (weight: string | null, size: number): string => weight ?? `${size} ones`;
const table = (name: string, spec: ModelSpec): Slot => ({
  shape: [tableRows(spec), spec.hidden],
  from: [{ name, rows: spec.vocab }],
});

function slotsOf(spec: ModelSpec, layerRange: StageLayers) {
  const { tensors, finalNormOffset = 0 } = familyOf(spec);
  const { embedding, norm, head, own } = tensors;
  const { from, to, first, last } = layerRange;
  const { perLayer } = spec;
  const layers = range(to - from).map((i) => {
    const { norms, factors, groups } = layerTensors(spec, from + i);
    return {
      linears: groups.map((of) => ({ group: of.group, place: `${from + i}.${of.group}`, ...linearSlots(of) })),
      norms: new Map(norms.map(({ weight, name, size, offset }) => [normKey(weight, size), normSlot(name, size, offset)])),
      factors: factors.map(({ factor, name }) => [factor, normSlot(name, 1, 0)] as const),
    };
  });
  return {
    embedding: first || perLayer || (last && spec.tiedEmbeddings) ? table(embedding, spec) : null,
    own: own && perLayer ? ownSlots(own, spec, perLayer) : null,
    embeddingNorm: first && spec.embeddingNorm !== null ? normSlot(null, spec.hidden, 0) : null,
    layers,
    finalNorm: last ? normSlot(norm, spec.hidden, finalNormOffset) : null,
    head: last && !spec.tiedEmbeddings ? table(head, spec) : null,
  };
}

/** The whole of all layers, on each stage. */
const ownSlots = (
  { table, projection, norm }: NonNullable<Definition["tensors"]["own"]>,
  { layers, hidden }: ModelSpec,
  { size, vocab }: NonNullable<ModelSpec["perLayer"]>,
) => {
  const matrix = (name: string, rows: number, columns: number): Slot => ({ shape: [rows, columns], from: [{ name, rows }] });
  return {
    table: matrix(table, vocab, layers * size),
    projection: matrix(projection, layers * size, hidden),
    norm: normSlot(norm, size, 0),
  };
};

function linearSlots({ in: width, linears, bias }: LayerTensors["groups"][number]): {
  readonly weight: Slot;
  readonly bias: Slot | null;
} {
  const from = (kind: "weight" | "bias") => linears.map(({ name, out }) => ({ name: `${name}.${kind}`, rows: out }));
  const out = sum(linears.map((linear) => linear.out));
  return {
    weight: { shape: [out, width], from: from("weight") },
    bias: bias ? { shape: [out], from: from("bias") } : null,
  };
}

/** What a group's weight becomes in a format, all but its address. */
function packedOf({ shape, from }: Slot, format: PackedFormat): Omit<PackedWeight, "ptr"> {
  const firstRow = [0];
  for (const { rows } of from) firstRow.push(firstRow.at(-1)! + rows);
  return { format, shape: [shape[0]!, shape[1]!], firstRow };
}

/** Of a group of linears, by its place. */
const formatOf = ({ format, denseGroups = [] }: HeldWeights, place: string): WeightFormat =>
  denseGroups.includes(place) ? "dense" : format;

const typeOf = ({ offset }: Slot, compute: DType): DType => (offset === undefined ? compute : "f32");

const isScaled = ({ embeddingScale, perLayer }: ModelSpec, { first }: StageLayers): boolean =>
  (first || perLayer !== null) && embeddingScale !== 1;

/** A number as a type has it: of some families transformers multiplies embeddings by one of the weights' type. */
const roundedTo = (compute: DType, value: number): Float32Array => {
  const rounded = Float32Array.of(value);
  return compute === "bf16" ? toF32(new Uint8Array(toBf16(rounded).buffer), "bf16") : rounded;
};

/** Bytes of the arena that `loadWeights` fills. */
export function weightBytes(spec: ModelSpec, layerRange: StageLayers, dtype: DType, held: HeldWeights): number {
  const slots = slotsOf(spec, layerRange);
  const sizes: number[] = [];
  const count = (slot: Slot | null) => {
    if (slot) sizes.push(sizeOf(slot.shape) * bytesOf(typeOf(slot, dtype)));
  };
  for (const slot of [slots.embedding, slots.embeddingNorm, slots.finalNorm, slots.head]) count(slot);
  if (isScaled(spec, layerRange)) sizes.push(4);
  if (slots.own) {
    for (const slot of [slots.own.projection, slots.own.norm]) count(slot);
    sizes.push(4, 4, 4);
  }
  for (const layer of slots.layers) {
    for (const [, slot] of [...layer.norms, ...layer.factors]) count(slot);
    for (const { place, weight, bias } of layer.linears) {
      const format = formatOf(held, place);
      if (format === "dense") count(weight);
      else sizes.push(partsOf(packedOf(weight, format)).bytes);
      count(bias);
    }
  }
  return arenaBytes(sizes);
}

/** Bytes of weights that lie in the machine's memory, the same on each stage; on a CPU they come to the others. */
export function hostWeightBytes(spec: ModelSpec, dtype: DType): number {
  const { perLayer, layers } = spec;
  return perLayer === null ? 0 : arenaBytes([perLayer.vocab * layers * perLayer.size * bytesOf(dtype)]);
}

/** A linear of a packed weight. */
export type PackedPlace = { readonly weight: PackedWeight; readonly linear: number };
/** `offset`: what is added to each element. */
export type Filling = { readonly packed?: PackedPlace; readonly offset?: NormOffset };

/**
 * Fills `to`, rows of one of our tensors, from the file's tensor `name`, in the type of `to`. Where the file has it in the very
 * format of `packed`, it fills that instead, and returns true.
 */
export type FillTensor = (name: string, to: Tensor, how: Filling) => boolean | void | Promise<boolean> | Promise<void>;

/** Room for one linear as the device computes, and for what packing it needs; released when all are packed. */
function openBench(device: Device, spec: ModelSpec) {
  const most = maxOf(
    linearsOfModel(spec).flatMap((linear) => linearShapes(spec, linear).map(({ out, in: width }) => out * width)),
  );
  const blocks = Math.ceil(most / NF4_BLOCK);
  const arena = new Arena(device, arenaBytes([most * bytesOf(device.compute), blocks * 4]), "a weight while it is packed");
  const values = arena.tensor(device.compute, most);
  return { values, absmax: arena.tensor("f32", blocks), [Symbol.dispose]: () => arena[Symbol.dispose]() };
}

/** Carves the weights of a part out of an arena and has each of them filled, in the order of the layers. */
export async function loadWeights(
  device: Device,
  { device: arena, host }: { readonly device: Arena; readonly host: Arena | null },
  spec: ModelSpec,
  layerRange: StageLayers,
  held: HeldWeights,
  fill: FillTensor,
): Promise<Weights> {
  using bench = held.format === "dense" ? null : openBench(device, spec);
  const load = async (slot: Slot, from = arena): Promise<Tensor> => {
    const whole = from.tensor(typeOf(slot, device.compute), ...slot.shape);
    let row = 0;
    for (const { name, rows } of slot.from) {
      await fill(name, rowsFrom(whole, row, rows), { offset: slot.offset ?? 0 });
      row += rows;
    }
    const rest = slot.shape[0]! - row;
    if (rest > 0 && slot.offset === 1) device.write(whole, new Float32Array(rest).fill(1));
    else if (rest > 0) device.zero(rowsFrom(whole, row, rest));
    return whole;
  };
  const pack = async (slot: Slot, place: string): Promise<Weight> => {
    const format = formatOf(held, place);
    if (format === "dense") return load(slot);
    const layout = packedOf(slot, format);
    const weight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    for (const [linear, { name, rows }] of slot.from.entries()) {
      const from = { ...bench!.values, shape: [rows, layout.shape[1]] };
      const isKept = await fill(name, from, { packed: { weight, linear } });
      if (isKept !== true) quantise(device, { from, weight, linear, absmax: bench!.absmax });
    }
    await device.idle(); // before what it was made from is released
    return weight;
  };
  const loadOwn = async ({ table, projection, norm }: NonNullable<typeof slots.own>): Promise<OwnInputWeights> => {
    const { tokens, projected, sum } = ownInputFactors(spec);
    const factor = (values: Float32Array): Tensor => {
      const to = arena.tensor("f32", 1);
      device.write(to, values);
      return to;
    };
    return {
      ...{ table: await load(table, host!), projection: await load(projection), norm: await load(norm) },
      factors: {
        tokens: factor(roundedTo(device.compute, tokens)),
        projected: factor(Float32Array.of(projected)),
        sum: factor(Float32Array.of(sum)),
      },
    };
  };
  const maybe = async (slot: Slot | null): Promise<Tensor | null> => (slot ? await load(slot) : null);
  const slots = slotsOf(spec, layerRange);
  const embedding = await maybe(slots.embedding);
  const embeddingScale = isScaled(spec, layerRange) ? arena.tensor("f32", 1) : null;
  const scaleType = familyOf(spec).isScaleExact ? "f32" : device.compute;
  if (embeddingScale) device.write(embeddingScale, roundedTo(scaleType, spec.embeddingScale));
  const embeddingNorm = await maybe(slots.embeddingNorm);
  const own = slots.own && (await loadOwn(slots.own));
  const layers: LayerWeights[] = [];
  for (const layer of slots.layers) {
    const linears = {} as Record<Group, LinearWeights>;
    for (const { group, place, weight, bias } of layer.linears)
      linears[group] = { weight: await pack(weight, place), bias: await maybe(bias) };
    const norms = new Map<string, Tensor>();
    for (const [weight, slot] of layer.norms) norms.set(weight, await load(slot));
    const factors = new Map<string, Tensor>();
    for (const [factor, slot] of layer.factors) factors.set(factor, await load(slot));
    layers.push({ norms, factors, linears });
  }
  const finalNorm = await maybe(slots.finalNorm);
  const head = layerRange.last && spec.tiedEmbeddings ? embedding : await maybe(slots.head);
  return { embedding, embeddingScale, own, embeddingNorm, layers, finalNorm, head };
}

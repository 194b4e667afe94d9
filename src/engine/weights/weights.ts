// The frozen weights of a range of layers on a device, and which tensors of a Hugging Face model fill them.
//
// Linears that share an input lie under each other in one matrix, so that each group is one product. Where they are packed,
// each is filled as the device computes, then packed, one after the other: no more than one of them is ever held twice.

import { bytesOf, type DType } from "../../base/dtype.ts";
import { layersIn } from "../../base/layers.ts";
import { type HeldWeights, type PackedFormat, tableFormatOf, type WeightFormat } from "../../base/precision.ts";
import { maxOf, sizeOf, sum } from "../../base/shape.ts";
import { type ModelSpec, tableRows } from "../../base/spec.ts";
import type { StageSetup } from "../../bus/messages.ts";
import { Arena, arenaBytes, rowsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import {
  type ExpertWeight,
  expertOf,
  isPacked,
  NF4_BLOCK,
  type PackedWeight,
  partsOf,
  type Weight,
} from "../../device/packed.ts";
import type { Definition, NormOffset } from "../../families/definition.ts";
import { expertProducts, type Group, linearShapes, linearsOfModel } from "../../families/linears.ts";
import { familyOf } from "../../families/registry.ts";
import { type ExpertPart, type ExpertTensors, type LayerTensors, layerTensors } from "../../families/tensors.ts";
import { toBf16, toF32 } from "../../files/convert.ts";
import { quantise, scaleRows } from "../../ops/packed.ts";
import { type OwnInputWeights, ownInputFactors } from "../operations/own-inputs.ts";

export type LinearWeights = { readonly weight: Weight; readonly bias: Tensor | null };

/** A grouped product's weight, with a bias c[E, N] or none. */
type ExpertProductWeights = { readonly weight: ExpertWeight; readonly bias: Tensor | null };

export type ExpertLayerWeights = {
  /** c[E, H], and a bias c[E] or none. */
  readonly router: { readonly weight: Tensor; readonly bias: Tensor | null };
  readonly up: ExpertProductWeights;
  readonly down: ExpertProductWeights;
};

export type LayerWeights = {
  /** By normKey. */
  readonly norms: ReadonlyMap<string, Tensor>;
  /** f32, numbers and vectors by their path; weights of a convolution [channels, taps]. */
  readonly factors: ReadonlyMap<string, Tensor>;
  readonly linears: Readonly<Record<Group, LinearWeights>>;
  /** Null where the layer has none. */
  readonly experts: ExpertLayerWeights | null;
};

export type Weights = {
  /** [tableRows, H]; null where neither the embedding nor a tied head is on this stage. */
  readonly embedding: Weight | null;
  /** f32[1], a number of the device's compute type; null where rows of the embedding are taken as they are. */
  readonly embeddingScale: Tensor | null;
  /** f32[H] of ones; null where the embedding has no norm. */
  readonly embeddingNorm: Tensor | null;
  /** Null where layers have no inputs of their own; else on every stage. */
  readonly own: OwnInputWeights | null;
  readonly layers: readonly LayerWeights[]; // of this stage, in order; of a part of a layer what it reads
  readonly finalNorm: Tensor | null;
  readonly head: Weight | null;
};

/** Which part of the model a stage holds. */
export type StageLayers = StageSetup["layerRange"];
export const wholeModel = ({ layers }: ModelSpec): StageLayers => ({ from: 0, to: layers, first: true, last: true });

/** A tensor on the device and the tensors of the files that fill it, under each other; rows beyond them are zeros. */
type Slot = {
  readonly shape: readonly number[];
  readonly from: readonly { readonly name: string; readonly rows: number; readonly part?: TensorPart }[];
  /** Of the weight of a norm, which is f32 on every device: 1 + w would lose w's digits in bf16. */
  readonly offset?: NormOffset;
};

const normSlot = (name: string | null, size: number, offset: NormOffset): Slot => ({
  shape: [size],
  from: name === null ? [] : [{ name, rows: size }],
  offset: name === null ? 1 : offset,
});
const factorSlot = (name: string, [rows, ...others]: readonly number[]): Slot => ({
  shape: [rows!, ...others.filter((size) => size > 1)],
  from: [{ name, rows: rows! }],
  offset: 0,
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
  const { first, last } = layerRange;
  const { perLayer } = spec;
  const layers = layersIn(layerRange).map((layer) => {
    const { norms, factors, groups, experts } = layerTensors(spec, layer, layerRange);
    return {
      linears: groups.map((of) => ({ group: of.group, place: `${layer}.${of.group}`, ...linearSlots(of) })),
      norms: new Map(norms.map(({ weight, name, size, offset }) => [normKey(weight, size), normSlot(name, size, offset)])),
      factors: factors.map(({ factor, name, shape }) => [factor, factorSlot(name, shape)] as const),
      experts: experts && expertSlots(experts, layer),
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

/** A weight, a matrix [N, K] for each expert, and its bias. */
type ExpertSlots = { readonly place: string; readonly each: readonly Slot[]; readonly bias: Slot | null };

function expertSlots({ count, router, products }: ExpertTensors, layer: number) {
  const product = (which: "up" | "down"): ExpertSlots => {
    const { in: width, out, files, parts, bias } = products[which];
    const rows = sum(out);
    const slot = (linears: readonly ExpertPart[]): Slot => ({
      shape: [rows, width],
      from: linears.map(({ name, out, first, isTurned }) =>
        files === "each" ? { name, rows: out } : { name, rows: out, part: { first, isTurned } },
      ),
    });
    return {
      place: `${layer}.experts.${which}`,
      each: parts.map(slot),
      bias: bias === null ? null : { shape: [count, rows], from: [{ name: bias, rows: count }] },
    };
  };
  const { name, size, bias } = router;
  return {
    router: { shape: [count, size], from: [{ name, rows: count }] } as Slot,
    routerBias: bias === null ? null : ({ shape: [count], from: [{ name: bias, rows: count }] } as Slot),
    up: product("up"),
    down: product("down"),
  };
}

/** What an expert's weight becomes in a format, all but its address. */
const expertPacked = (slot: Slot, format: PackedFormat): Omit<PackedWeight, "ptr"> => ({
  ...packedOf(slot, format),
  ...(format === "fp8" ? { isSingle: true as const } : {}),
});

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

/** Of a product of experts, by its place. */
const formatOfExperts = (held: HeldWeights, place: string): WeightFormat => held.expertFormat ?? formatOf(held, place);

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
  const add = (slot: Slot, format: WeightFormat) => {
    if (format === "dense") count(slot);
    else sizes.push(partsOf(packedOf(slot, format)).bytes);
  };
  for (const slot of [slots.embedding, slots.head]) if (slot) add(slot, tableFormatOf(held));
  for (const slot of [slots.embeddingNorm, slots.finalNorm]) count(slot);
  if (isScaled(spec, layerRange)) sizes.push(4);
  if (slots.own) {
    for (const slot of [slots.own.projection, slots.own.norm]) count(slot);
    sizes.push(4, 4, 4);
  }
  for (const layer of slots.layers) {
    for (const [, slot] of [...layer.norms, ...layer.factors]) count(slot);
    for (const { place, weight, bias } of layer.linears) {
      add(weight, formatOf(held, place));
      count(bias);
    }
    if (!layer.experts) continue;
    const { router, routerBias, up, down } = layer.experts;
    count(router);
    count(routerBias);
    for (const { place, each, bias } of [up, down]) {
      sizes.push(each.length * expertBytes(each[0]!, formatOfExperts(held, place), dtype));
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

/** Bytes from one expert's weight to the next's. */
const expertBytes = (slot: Slot, format: WeightFormat, dtype: DType): number =>
  format === "dense" ? sizeOf(slot.shape) * bytesOf(dtype) : partsOf(expertPacked(slot, format)).bytes;

/** A matrix within a tensor of more: elements before it, and whether it is [columns, rows] there. */
export type TensorPart = { readonly first: number; readonly isTurned: boolean };

/** A linear of a packed weight. */
export type PackedPlace = { readonly weight: PackedWeight; readonly linear: number };
/** `offset`: what is added to each element. */
export type Filling = {
  readonly packed?: PackedPlace;
  readonly offset?: NormOffset;
  /** Left out: the whole tensor. */
  readonly part?: TensorPart | undefined;
};

/**
 * Fills `to`, rows of one of our tensors, from the file's tensor `name`, in the type of `to`. Where the file has it in the very
 * format of `packed`, it fills that instead, and returns true.
 */
export type FillTensor = (name: string, to: Tensor, how: Filling) => boolean | void | Promise<boolean> | Promise<void>;

/** Elements of the largest linear. */
const mostElements = (spec: ModelSpec): number =>
  maxOf([
    ...linearsOfModel(spec).flatMap((linear) => linearShapes(spec, linear).map(({ out, in: width }) => out * width)),
    ...expertProducts(spec).map(({ in: width, out }) => maxOf(out) * width),
  ]);

/** Room for a linear of at most that many elements as the device computes, and for what packing it needs. */
function openBench(device: Device, most: number) {
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
  using bench = held.format === "dense" && held.expertFormat === undefined ? null : openBench(device, mostElements(spec));
  const fillRows = async (slot: Slot, whole: Tensor): Promise<number> => {
    let row = 0;
    for (const { name, rows, part } of slot.from) {
      await fill(name, rowsFrom(whole, row, rows), { offset: slot.offset ?? 0, part });
      row += rows;
    }
    return row;
  };
  const load = async (slot: Slot, from = arena): Promise<Tensor> => {
    const whole = from.tensor(typeOf(slot, device.compute), ...slot.shape);
    const row = await fillRows(slot, whole);
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
    await packInto(slot, weight);
    await device.idle(); // before what it was made from is released
    return weight;
  };
  const packInto = async (slot: Slot, weight: PackedWeight, on = bench!): Promise<void> => {
    for (const [linear, { name, rows, part }] of slot.from.entries()) {
      const from = { ...on.values, shape: [rows, weight.shape[1]] };
      const isKept = await fill(name, from, { packed: { weight, linear }, part });
      if (isKept !== true) quantise(device, { from, weight, linear, absmax: on.absmax });
      if (weight.format === "nf4-fp8") scaleRows(device, { weight, linear });
    }
  };
  /** Of the embedding or the head: rows beyond its own are zeros. */
  const loadTable = async (slot: Slot): Promise<Weight> => {
    const format = tableFormatOf(held);
    if (format === "dense") return load(slot);
    const layout = { ...packedOf(slot, format), firstRow: [0, slot.shape[0]!] };
    const weight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    using own = openBench(device, sizeOf(slot.shape));
    const [rows, width] = slot.shape as [number, number];
    device.zero(rowsFrom({ ...own.values, shape: [rows, width] }, slot.from[0]!.rows, rows - slot.from[0]!.rows));
    await packInto(slot, weight, own);
    await device.idle();
    return weight;
  };
  const loadExperts = async ({ place, each, bias }: ExpertSlots): Promise<ExpertProductWeights> => {
    const format = formatOfExperts(held, place);
    const [slot, experts] = [each[0]!, each.length];
    const stride = expertBytes(slot, format, device.compute);
    const { ptr } = arena.tensor("u8", experts * stride);
    const first: Weight =
      format === "dense" ? { ptr, dtype: device.compute, shape: slot.shape } : { ptr, ...expertPacked(slot, format) };
    const weight = { first, experts, stride };
    for (const [expert, slot] of each.entries()) {
      const own = expertOf(weight, expert);
      if (isPacked(own)) await packInto(slot, own);
      else await fillRows(slot, own);
    }
    await device.idle();
    return { weight, bias: await maybe(bias) };
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
  const embedding = slots.embedding && (await loadTable(slots.embedding));
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
    const experts = layer.experts && {
      router: { weight: await load(layer.experts.router), bias: await maybe(layer.experts.routerBias) },
      up: await loadExperts(layer.experts.up),
      down: await loadExperts(layer.experts.down),
    };
    layers.push({ norms, factors, linears, experts });
  }
  const finalNorm = await maybe(slots.finalNorm);
  const head = layerRange.last && spec.tiedEmbeddings ? embedding : slots.head && (await loadTable(slots.head));
  return { embedding, embeddingScale, own, embeddingNorm, layers, finalNorm, head };
}

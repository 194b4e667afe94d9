// The frozen weights of a range of layers on a device, and which tensors of a Hugging Face model fill them.
//
// Linears that share an input lie under each other in one matrix, so that each group is one product. Where they are packed,
// each is filled as the device computes, then packed, one after the other: no more than one of them is ever held twice.

import { bytesOf, type DType } from "../base/dtype.ts";
import type { PackedFormat, WeightFormat } from "../base/precision.ts";
import { maxOf, range, sizeOf, sum } from "../base/shape.ts";
import { type ModelSpec, tableRows } from "../base/spec.ts";
import type { StageSetup } from "../bus/messages.ts";
import { Arena, arenaBytes, rowsFrom } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { NF4_BLOCK, type PackedWeight, partsOf, type Weight } from "../device/packed.ts";
import { type Group, linearShapes, linearsOfModel } from "../families/linears.ts";
import { familyOf } from "../families/registry.ts";
import { type LayerTensors, layerTensors } from "../families/tensors.ts";
import { quantise } from "../ops/packed.ts";

export type LinearWeights = { readonly weight: Weight; readonly bias: Tensor | null };

export type LayerWeights = {
  /** By the path within the layer. */
  readonly norms: ReadonlyMap<string, Tensor>;
  readonly linears: Readonly<Record<Group, LinearWeights>>;
};

export type Weights = {
  /** [tableRows, H]; null where neither the embedding nor a tied head is on this stage. */
  readonly embedding: Tensor | null;
  readonly layers: readonly LayerWeights[]; // of this stage, in order
  readonly finalNorm: Tensor | null;
  readonly head: Tensor | null;
};

/** Which part of the model a stage holds. */
export type StageLayers = StageSetup["layerRange"];
export const wholeModel = ({ layers }: ModelSpec): StageLayers => ({ from: 0, to: layers, first: true, last: true });

/** A tensor on the device and the tensors of the files that fill it, under each other; rows beyond them are zeros. */
type Slot = { readonly shape: readonly number[]; readonly from: readonly { readonly name: string; readonly rows: number }[] };

const vector = (name: string, size: number): Slot => ({ shape: [size], from: [{ name, rows: size }] });
const table = (name: string, spec: ModelSpec): Slot => ({
  shape: [tableRows(spec), spec.hidden],
  from: [{ name, rows: spec.vocab }],
});

function slotsOf(spec: ModelSpec, layerRange: StageLayers) {
  const { embedding, norm, head } = familyOf(spec).tensors;
  const { from, to, first, last } = layerRange;
  const layers = range(to - from).map((i) => {
    const { norms, groups } = layerTensors(spec, from + i);
    return {
      linears: groups.map((of) => [of.group, linearSlots(of)] as const),
      norms: norms.map(({ weight, name, size }) => [weight, vector(name, size)] as const),
    };
  });
  return {
    embedding: first || (last && spec.tiedEmbeddings) ? table(embedding, spec) : null,
    layers,
    finalNorm: last ? vector(norm, spec.hidden) : null,
    head: last && !spec.tiedEmbeddings ? table(head, spec) : null,
  };
}

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

/** Bytes of the arena that `loadWeights` fills. */
export function weightBytes(spec: ModelSpec, layerRange: StageLayers, dtype: DType, format: WeightFormat): number {
  const slots = slotsOf(spec, layerRange);
  const sizes: number[] = [];
  const count = (slot: Slot | null) => {
    if (slot) sizes.push(sizeOf(slot.shape) * bytesOf(dtype));
  };
  for (const slot of [slots.embedding, slots.finalNorm, slots.head]) count(slot);
  for (const layer of slots.layers) {
    for (const [, slot] of layer.norms) count(slot);
    for (const [, { weight, bias }] of layer.linears) {
      if (format === "dense") count(weight);
      else sizes.push(partsOf(packedOf(weight, format)).bytes);
      count(bias);
    }
  }
  return arenaBytes(sizes);
}

/** A linear of a packed weight. */
export type PackedPlace = { readonly weight: PackedWeight; readonly linear: number };

/**
 * Fills `to`, rows of one of our tensors, from the file's tensor `name`, in the device's compute type. Where the file has it in
 * the very format of `packed`, it fills that instead, and returns true.
 */
export type FillTensor = (name: string, to: Tensor, packed?: PackedPlace) => boolean | void | Promise<boolean> | Promise<void>;

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
  arena: Arena,
  spec: ModelSpec,
  layerRange: StageLayers,
  format: WeightFormat,
  fill: FillTensor,
): Promise<Weights> {
  using bench = format === "dense" ? null : openBench(device, spec);
  const load = async (slot: Slot): Promise<Tensor> => {
    const whole = arena.tensor(device.compute, ...slot.shape);
    let row = 0;
    for (const { name, rows } of slot.from) {
      await fill(name, rowsFrom(whole, row, rows));
      row += rows;
    }
    if (row < slot.shape[0]!) device.zero(rowsFrom(whole, row, slot.shape[0]! - row));
    return whole;
  };
  const pack = async (slot: Slot): Promise<Weight> => {
    if (format === "dense") return load(slot);
    const layout = packedOf(slot, format);
    const weight = { ...layout, ptr: arena.tensor("u8", partsOf(layout).bytes).ptr };
    for (const [linear, { name, rows }] of slot.from.entries()) {
      const from = { ...bench!.values, shape: [rows, layout.shape[1]] };
      const isKept = await fill(name, from, { weight, linear });
      if (isKept !== true) quantise(device, { from, weight, linear, absmax: bench!.absmax });
    }
    await device.idle(); // before what it was made from is released
    return weight;
  };
  const maybe = async (slot: Slot | null): Promise<Tensor | null> => (slot ? await load(slot) : null);
  const slots = slotsOf(spec, layerRange);
  const embedding = await maybe(slots.embedding);
  const layers: LayerWeights[] = [];
  for (const layer of slots.layers) {
    const linears = {} as Record<Group, LinearWeights>;
    for (const [group, { weight, bias }] of layer.linears)
      linears[group] = { weight: await pack(weight), bias: await maybe(bias) };
    const norms = new Map<string, Tensor>();
    for (const [weight, slot] of layer.norms) norms.set(weight, await load(slot));
    layers.push({ norms, linears });
  }
  const finalNorm = await maybe(slots.finalNorm);
  const head = layerRange.last && spec.tiedEmbeddings ? embedding : await maybe(slots.head);
  return { embedding, layers, finalNorm, head };
}

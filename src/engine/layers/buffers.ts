// The memory of a pass: what a micro-batch keeps from its forward to its backward pass (Activations), and what every pass may
// overwrite (Workspace). All is carved from arenas before training, for the largest micro-batch.

import { bytesOf, type DType } from "../../base/dtype.ts";
import { keepsInputsAlone } from "../../base/recomputation.ts";
import { maxOf, range, sizeOf, sum } from "../../base/shape.ts";
import { type ModelSpec, tableRows } from "../../base/spec.ts";
import type { StageSetup } from "../../bus/messages.ts";
import { arenaBytes } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import { isExperts, isLinears, type Op, type Operation } from "../../families/definition.ts";
import type { Group } from "../../families/linears.ts";
import { INPUT } from "../../families/parts.ts";
import { PEFT_METHODS, type PeftMethod } from "../../methods/registry.ts";
import { type ExpertActivations, type ExpertWork, takeExpertActivations, takeExpertWork } from "../operations/experts.ts";
import { behaviourOf } from "../operations/operations.ts";
import { type OwnInputWork, takeOwnInputWork } from "../operations/own-inputs.ts";
import { addedOf, type LayerProgram, type Program, STREAM } from "./program.ts";
import type { SharedLayers } from "./shared-layers.ts";

export type StageSizes = StageSetup["sizes"];
/** What decides the size of a pass's memory. */
export type Sizes = Pick<
  StageSizes,
  "rows" | "targets" | "chunk" | "layers" | "recomputation" | "hostInputs" | "low" | "products" | "slots"
> & { readonly expertTile: number; readonly makesInputs: boolean };

export type Take = (dtype: DType, ...shape: number[]) => Tensor;
export type ByName<T = Tensor> = ReadonlyMap<string, T>;

/** The product of a group of linears with all that is added, of each method that is computed from it. */
export type Products = Readonly<Partial<Record<PeftMethod, Tensor>>>;

/** What one layer computes in its forward pass and reads in its backward pass, except the stream before and after it. */
export type LayerActivations = {
  /** By the value whose memory it is (program.ts). */
  readonly values: ByName;
  /** Values in working memory: each is there until the next of its kind. */
  readonly transient: ReadonlySet<string>;
  /** f32 tensors that operations save for their backward pass, by the value that each computes. */
  readonly saved: ByName;
  /** s = A drop(x) of each group, c[E]: of each adapter's rows as many columns as its ranks need. */
  readonly low: ByName;
  /** What experts keep, by the value that they compute. */
  readonly experts: ByName<ExpertActivations>;
  /** Whole products for the backward pass, by group; none of a group where they are computed again. */
  readonly products: ByName<Products>;
};

/** What of a pass is in host memory while other layers run (offloaded-streams.ts). */
export interface HostStreams {
  /** Before layer `i` runs forward, and once it has made attention's input, where that is kept. */
  beforeForward(i: number, rows: number): void;
  afterInput(i: number, rows: number): void;
  /** Before and after what layer `i` computes in the backward pass. */
  beforeBackward(i: number, rows: number): void;
  afterBackward(i: number, rows: number): void;
}

export type Activations = {
  /** Null where all that is kept is on the device. */
  readonly hostStreams: HostStreams | null;
  /** Memory of the layers whose attention's input is kept, one after the other; null where none has any (shared-layers.ts). */
  readonly region: Tensor | null;
  /** Keys and values that later layers read, too: [M, 2 C D] by the layer that has made them. */
  readonly shared: ReadonlyMap<number, Tensor>;
  /** The layers' own inputs, c[M, layers * size]; null for none. */
  readonly ownInputs: Tensor | null;
  readonly embedded: Tensor; // s of what adapters add to the embedding, c[E]
  readonly inputs: readonly Tensor[]; // x of each layer, and the stream after the last
  readonly layers: readonly LayerActivations[];
};

/** What a forward pass overwrites. */
export type ForwardWork = {
  /** Values that are not kept, by kind. */
  readonly values: ByName;
  /** Whole products of a layer's last linears, where they are computed again: with full recomputation. */
  readonly z: Products;
  /** Null where layers have no inputs of their own. */
  readonly ownInputs: OwnInputWork | null;
  /** Null in a stage without experts. */
  readonly experts: ExpertWork | null;
};

export type Workspace = ForwardWork & {
  readonly grad: Tensor; // [M, H] gradient of the stream
  readonly gradients: readonly ByName[]; // of each layer, by kind of value; the stream's is `grad`
  readonly ds: Tensor; // c[E] of the group with most
  readonly delta: Tensor; // [Q, M]
  /** Of the keys and values that layers share, f32[M, 2 C D] by the layer that has made them. */
  readonly shared: ReadonlyMap<number, Tensor>;
};

/** Buffers of the output head and the loss. */
export type HeadBuffers = {
  readonly x: Tensor; // [T, H] target rows of the stream, then their gradient
  readonly h: Tensor; // [T, H] normed
  readonly gradH: Tensor; // [T, H]
  readonly rstd: Tensor;
  readonly logits: Tensor; // [chunk, tableRows]
  readonly s: Tensor; // c[E] of a chunk: what adapters have of the head
  readonly ds: Tensor;
  readonly poolRows: Tensor; // i32[T] of pooled hidden states (engine/head/pooling.ts)
  readonly poolBounds: Tensor; // i32[T, 2]
};

const linearsOf = ({ operations }: LayerProgram) => operations.filter(isLinears);

/**
 * Whether a value stays until the backward pass: what is cheap to compute is kept only for adapters that read it, and not even
 * for them where their gradients make it again as they read.
 */
function isKept(program: LayerProgram, name: string, { recomputation, low, products, makesInputs }: Sizes): boolean {
  const { made } = program.values.get(name)!;
  if (made === null || !behaviourOf(made).isCheap(made)) return true;
  if (recomputation !== "none") return false;
  const isMade = makesInputs && behaviourOf(made).madeOf !== undefined;
  const needsItself = (group: string) => PEFT_METHODS.some((method) => products[method]?.includes(group as Group));
  return program.operations.some((of) => {
    if (isLinears(of)) return of.from === name && elementsOf(low, of.group) > 0 && (!isMade || needsItself(of.group));
    return isExperts(of) && of.from === name && elementsOf(low, of.up.group) > 0;
  });
}

const elementsOf = (low: Sizes["low"], group: string): number => low[group as Group] ?? 0;

function takeProducts(take: TakeNamed, compute: DType, product: Op<"linears">, sizes: Sizes): Products {
  const keeping = PEFT_METHODS.filter((method) => sizes.products[method]?.includes(product.group as Group));
  const [rows, columns] = [sizes.rows, sum(product.out)];
  return Object.fromEntries(keeping.map((method) => [method, take(`${product.group}, ${method}`, compute, rows, columns)]));
}

/** How the memory of a layer is taken: that of each operation, and what is read after the layers of a pass. */
export type LayerTakes = { readonly of: (operation: Operation) => TakeNamed; readonly pass: TakeNamed };

export function takeLayer(
  takes: LayerTakes,
  compute: DType,
  program: LayerProgram,
  sizes: Sizes,
  work: ForwardWork,
): LayerActivations {
  const { rows, recomputation } = sizes;
  const values = new Map<string, Tensor>();
  const transient = new Set<string>();
  const saved = new Map<string, Tensor>();
  for (const [name, { made, memory, kind, width }] of program.values) {
    if (made === null) continue;
    const take = takes.of(made);
    const shape = behaviourOf(made).saved?.(made, rows);
    if (shape) saved.set(name, take(`${name}, saved`, "f32", ...shape));
    if (memory !== name || name === program.outputMemory) continue;
    if (!isKept(program, name, sizes)) transient.add(name);
    values.set(name, transient.has(name) ? work.values.get(kind)! : take(name, compute, rows, width));
  }
  const low = new Map<string, Tensor>();
  const products = new Map<string, Products>();
  for (const product of linearsOf(program)) {
    const { group } = product;
    const take = takes.of(product);
    low.set(group, take(`${group}, low`, compute, elementsOf(sizes.low, group)));
    const isKept = !(keepsInputsAlone(recomputation) && product.to === program.output);
    products.set(group, isKept ? takeProducts(take, compute, product, sizes) : {});
  }
  const experts = new Map(
    program.operations
      .filter(isExperts)
      .map((of) => [of.to, takeExpertActivations(takes.of(of), takes.pass, compute, of, sizes, program.layer)] as const),
  );
  return { values, transient, saved, low, products, experts };
}

/** One tensor for each kind. */
function takeKinds(take: Take, compute: DType, rows: number, kinds: Iterable<readonly [kind: string, width: number]>) {
  const tensors = new Map<string, Tensor>();
  for (const [kind, width] of kinds) if (!tensors.has(kind)) tensors.set(kind, take(compute, rows, width));
  return tensors;
}

export function takeForwardWork(take: Take, compute: DType, program: Program, sizes: Sizes): ForwardWork {
  const { rows, recomputation } = sizes;
  const cheap = program.flatMap(({ values }) =>
    [...values.values()].flatMap(({ made, kind, width }) =>
      made && behaviourOf(made).isCheap(made) ? [[kind, width] as const] : [],
    ),
  );
  const last = program.flatMap((layer) => linearsOf(layer).filter(({ to }) => to === layer.output));
  const again = shared(take);
  const own = ownInputOf(program);
  return {
    values: takeKinds(take, compute, rows, cheap),
    ownInputs: own && takeOwnInputWork(take, compute, own, rows),
    experts: takeExpertWork(take, compute, program, sizes),
    z: Object.assign({}, ...(keepsInputsAlone(recomputation) ? last : []).map((of) => takeProducts(again, compute, of, sizes))),
  };
}

/** Gradients in working memory of these layers but the stream's, one tensor for each kind. */
export function takeGradients(take: Take, compute: DType, program: Program, rows: number): ByName {
  const used = program.flatMap(({ values, gradients }) =>
    [...gradients].flatMap(([name, place]) => ("work" in place ? [[place.work, values.get(name)!.width] as const] : [])),
  );
  const added = program.flatMap(({ adding, operations }) => [
    ...[...adding].filter(isLinears).map((of) => [addedOf(of.in), of.in] as const),
    ...operations.filter(isExperts).map(({ up }) => [addedOf(up.in), up.in] as const), // of the router
  ]);
  const kinds = [...used, ...added].filter(([kind]) => kind !== STREAM);
  return takeKinds(take, compute, rows, kinds);
}

/** `layers`: the gradients of each layer, where layers share memory. */
export function takeWorkspace(
  take: Take,
  compute: DType,
  program: Program,
  sizes: Sizes,
  layers: readonly ByName[] | null,
): Omit<Workspace, keyof ForwardWork> {
  const { rows, low } = sizes;
  const operations = program.flatMap((layer) => layer.operations);
  const heads = operations.map((operation) => (operation.op === "attention" ? operation.heads.heads : 0));
  const all = layers ? null : takeGradients(take, compute, program, rows);
  return {
    grad: take(compute, rows, program[0]!.values.get(INPUT)!.width),
    gradients: layers ?? program.map(() => all!),
    ds: take(compute, maxOf([low.embedding ?? 0, ...program.flatMap(linearsOf).map(({ group }) => elementsOf(low, group))])),
    delta: take("f32", maxOf(heads), rows),
    shared: takeShared(take, "f32", program, rows),
  };
}

/** [M, 2 C D] of each layer that keeps its keys and values for others. */
const takeShared = (take: Take, dtype: DType, program: Program, rows: number): ReadonlyMap<number, Tensor> =>
  new Map(
    program.flatMap(({ layer, operations }) =>
      operations.flatMap((of) =>
        of.op === "keepKv" ? [[layer, take(dtype, rows, 2 * of.heads.kvHeads * of.heads.headDim)] as const] : [],
      ),
    ),
  );

/** What layers read of a pass besides the stream. */
export const takeBeside = (take: Take, compute: DType, program: Program, { rows, low }: Sizes) => ({
  embedded: take(compute, low.embedding ?? 0),
  shared: takeShared(take, compute, program, rows),
  ownInputs: takeOwnInputs(take, compute, program, rows),
});

function takeOwnInputs(take: Take, compute: DType, program: Program, rows: number): Tensor | null {
  const of = ownInputOf(program);
  return of ? take(compute, rows, of.layers * of.size) : null;
}

/** The sizes of the layers' own inputs; null for none. */
function ownInputOf(program: Program) {
  const of = program[0]?.operations.find((operation) => operation.op === "perLayer");
  return of ? { layers: of.layers, size: of.size, hidden: program[0]!.values.get(INPUT)!.width } : null;
}

export type TakeNamed = (name: string, dtype: DType, ...shape: number[]) => Tensor;

/** One tensor for all of a name and shape. */
export function shared(take: Take): TakeNamed {
  const tensors = new Map<string, Tensor>();
  return (name, dtype, ...shape) => {
    const key = `${name} ${dtype} ${shape}`;
    if (!tensors.has(key)) tensors.set(key, take(dtype, ...shape));
    return tensors.get(key)!;
  };
}

/** The memory of each layer. */
function takeLayers(take: Take, compute: DType, program: Program, sizes: Sizes, work: ForwardWork): LayerActivations[] {
  const named: TakeNamed = (_, ...of) => take(...of);
  return program.map((layer) => takeLayer({ of: () => named, pass: named }, compute, layer, sizes, work));
}

/** Streams that a pass has on the device while the others are in host memory: those of a layer, and one on its way. */
export const OFFLOADED_RING = 3;

/** `layers`: where they share memory, with the region that is each pass's own; else each has its own. */
export function takeActivations(
  take: Take,
  compute: DType,
  program: Program,
  sizes: Sizes,
  work: ForwardWork,
  layers: SharedLayers | null,
): Activations {
  const { rows, recomputation } = sizes;
  const count = program.length + 1;
  const ring = recomputation === "offload" ? Math.min(OFFLOADED_RING, count) : count;
  const streams = range(ring).map(() => take(compute, rows, program[0]!.values.get(INPUT)!.width));
  const region = layers && layers.regionBytes > 0 ? take("u8", layers.regionBytes) : null;
  return {
    hostStreams: null,
    inputs: range(count).map((i) => streams[i % ring]!),
    region,
    layers: layers ? layers.layersAt(region) : takeLayers(take, compute, program, sizes, work),
    ...takeBeside(take, compute, program, sizes),
  };
}

export function takeHead(take: Take, compute: DType, spec: ModelSpec, { targets, chunk, low }: Sizes): HeadBuffers {
  return {
    x: take(compute, targets, spec.hidden),
    h: take(compute, targets, spec.hidden),
    gradH: take(compute, targets, spec.hidden),
    rstd: take("f32", targets),
    logits: take(compute, chunk, tableRows(spec)),
    s: take(compute, low.head ?? 0),
    ds: take(compute, low.head ?? 0),
    poolRows: take("i32", targets),
    poolBounds: take("i32", targets, 2),
  };
}

/** Bytes that a set of buffers takes, by asking for them and counting. */
export function countBytes(carve: (take: Take) => void): number {
  const sizes: number[] = [];
  carve((dtype, ...shape) => {
    sizes.push(sizeOf(shape) * bytesOf(dtype));
    return { ptr: 0, dtype, shape };
  });
  return arenaBytes(sizes);
}

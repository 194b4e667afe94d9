// One layer in one pass: its weights, and its values and gradients, cut to the rows of the batch.

import { invariant } from "../../base/errors.ts";
import { columnsFrom, firstRows } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { isExperts, isLinears, type Op, type Operation } from "../../families/definition.ts";
import type { Group } from "../../families/linears.ts";
import { INPUT, othersOf, residualOf } from "../../families/parts.ts";
import { roundsSwiglu } from "../../ops/linear/fp8.ts";
import { type DownInput, makesInputs } from "../../ops/lora.ts";
import * as adapted from "../adapted/adapted-linear.ts";
import type { TargetGroup } from "../adapted/target-group.ts";
import type { Cached, LayerCache } from "../generation/kv-cache.ts";
import { type ExpertActivations, expertsAgain } from "../operations/experts.ts";
import { behaviourOf } from "../operations/operations.ts";
import type { AdapterPool } from "../pool/adapter-pool.ts";
import { type ExpertLayerWeights, type LayerWeights, type LinearWeights, normKey } from "../weights/weights.ts";
import type { Batch, LowRows } from "./batch.ts";
import type { Activations, ByName, ForwardWork, LayerActivations, Products, Workspace } from "./buffers.ts";
import { type Activation, addedOf, type LayerProgram, STREAM } from "./program.ts";
import { fuse, fuseWithNext } from "./row-fusion.ts";

/** Of each rope of the model. */
export type RopeTables = readonly RopeTable[];
type RopeTable = {
  readonly rotated: number;
  readonly cos: Tensor | null;
  readonly sin: Tensor | null;
  readonly queryScale: Tensor | null;
};
const NO_ROPE: RopeTable = { rotated: 0, cos: null, sin: null, queryScale: null };

export type LayerPassOptions = {
  readonly device: Device;
  readonly pool: AdapterPool;
  readonly ropes: RopeTables;
  readonly batch: Batch;
  readonly program: LayerProgram;
  readonly weights: LayerWeights;
  readonly acts: LayerActivations;
  /** The stream before and after the layer. */
  readonly x: Tensor;
  readonly out: Tensor;
  readonly work: ForwardWork | Workspace;
  /** Gradients in working memory, by kind of value; left out of a pass without them. */
  readonly gradients?: ByName;
  /** Null where keys and values are not kept. */
  readonly cached?: (Omit<Cached, "cache"> & { readonly cache: LayerCache; readonly isOwn: boolean }) | null;
  /** What the pass keeps for several layers. */
  readonly beside: Pick<Activations, "shared">;
  /** The inputs of all layers, c[M, layers * size], once they are needed; null where layers have none. */
  readonly ownInputs: () => Tensor | null;
  /** False in the model's first layer: nothing before it is trained. */
  readonly needsInput?: boolean;
};

export class LayerPass {
  readonly device: Device;
  readonly batch: Batch;
  readonly program: LayerProgram;
  readonly cached: LayerPassOptions["cached"];
  /** The value that each kind of working memory holds. */
  readonly #held = new Map<string, string>();

  constructor(private readonly of: LayerPassOptions) {
    ({ device: this.device, batch: this.batch, program: this.program, cached: this.cached } = of);
  }

  /**
   * From the operation `from` on. Where the last one computes the first of the layer after it as well, says so. `then.run` is
   * called once as many operations as `then.after` are enqueued.
   */
  forward(
    from = 0,
    next: LayerPass | null = null,
    then: { readonly after: number; readonly run: () => void } | null = null,
  ): boolean {
    const { operations } = this.program;
    for (let i = from; i < operations.length; ) {
      if (i === then?.after) then.run();
      const fused = fuse(operations, i, this);
      if (fused === 0 && fuseWithNext(operations, i, this, next)) return true;
      if (fused === 0) this.#run(operations[i]!);
      i += Math.max(1, fused);
    }
    return false;
  }

  /**
   * Computes again what the backward pass reads: all but linears and experts whose output is the layer's, and what is cheap and
   * only such linears read, which is restored where adapters do. What `kept` made is there.
   */
  recompute(kept: readonly Operation[]): void {
    const { output } = this.program;
    const operations = this.program.operations.filter((of) => !kept.includes(of));
    const last = operations.find((of) => of.to === output && isLinears(of));
    const isRead = (name: string) =>
      operations.some((of) => of !== last && [of.from, ...othersOf(of), residualOf(of)].includes(name));
    for (const operation of operations) {
      if (operation.to === output && isExperts(operation)) expertsAgain(operation, this);
      else if (operation !== last && (!this.of.acts.transient.has(operation.to) || isRead(operation.to))) this.#run(operation);
      else if (operation === last && isLinears(operation)) {
        const adapters = this.adapters(operation.group);
        if (!adapters) continue;
        this.restore(operation.from);
        adapted.down(this.device, adapters, this.batch, this.value(operation.from), this.low(operation.group));
      }
    }
  }

  /** Turns the gradient of the layer's output into that of its input, and adds to the adapters' gradients. */
  backward(): void {
    for (const operation of this.program.reversed) behaviourOf(operation).backward(operation, this);
  }

  #run(operation: Operation): void {
    behaviourOf(operation).forward(operation, this);
    this.#held.set(this.#valueOf(operation.to).kind, operation.to);
  }

  #valueOf(name: string) {
    return this.program.values.get(name)!;
  }

  /** c[M, width] */
  value(name: string): Tensor {
    const { memory } = this.#valueOf(name);
    const { acts, x, out } = this.of;
    return this.#cut(memory === INPUT ? x : memory === this.program.outputMemory ? out : acts.values.get(memory)!);
  }

  /** Makes sure that a value is where it was in the forward pass. */
  restore(name: string): void {
    const { kind, made } = this.#valueOf(name);
    if (this.of.acts.transient.has(name) && this.#held.get(kind) !== name) this.#run(made!);
  }

  /** A value for the gradients of linears that read it, or what they make it of, where it need not be there. */
  input(name: string, mustBeThere: boolean): DownInput {
    const { kind, made } = this.#valueOf(name);
    const isThere = !this.of.acts.transient.has(name) || this.#held.get(kind) === name;
    const { madeOf } = made ? behaviourOf(made) : {};
    if (!isThere && !mustBeThere && madeOf && makesInputs(this.device)) return madeOf(made!, this);
    this.restore(name);
    return { x: this.value(name) };
  }

  /**
   * SwiGLU between two products, by its output, where the second one's rows are rounded as they are made, without the output in
   * memory; undefined where it is there, as adapters or another base read it.
   */
  roundedOutput(to: string): Activation | undefined {
    const of = this.program.activations.get(to);
    return of?.to === to && this.#rounds(of.down, of) ? of : undefined;
  }

  /** The same of the gradients of gate and up, by these. */
  roundedGradient(from: string): Activation | undefined {
    const of = this.program.activations.get(from);
    return of?.from === from && this.#rounds(of.up, of) ? of : undefined;
  }

  #rounds({ group }: Op<"linears">, { to }: Activation): boolean {
    const isFrozen = !this.batch.low.has(group as Group) && !this.batch.rowAdapter;
    return isFrozen && roundsSwiglu(this.device, this.linears(group).weight, this.#valueOf(to).width);
  }

  /** c[M, width]; null where it is not needed. */
  gradient(name: string): Tensor | null {
    if (this.of.needsInput === false && !this.#valueOf(name).isTrained) return null;
    const place = this.program.gradients.get(name)!;
    return "value" in place ? this.value(place.value) : this.#working(place.work);
  }

  /** What the operation that computes a value saves for its backward pass. */
  saved(name: string): Tensor {
    const { made } = this.#valueOf(name);
    return { ...this.of.acts.saved.get(name)!, shape: behaviourOf(made!).saved!(made!, this.batch.rows) };
  }

  get work(): ForwardWork {
    return this.of.work;
  }

  get workspace(): Workspace {
    const { work } = this.of;
    invariant("gradients" in work, "a gradient in a pass that has none");
    return work;
  }

  /** What the experts that compute a value keep. */
  experts(name: string): ExpertActivations {
    return this.of.acts.experts.get(name)!;
  }

  expertWeights(): ExpertLayerWeights {
    return this.of.weights.experts!;
  }

  /** How many adapters there can be. */
  get slots(): number {
    return this.of.pool.slots;
  }

  /** The tables of a rope of the model. */
  rope(table: number | null): RopeTable {
    return table === null ? NO_ROPE : this.of.ropes[table]!;
  }

  /** Keys and values that layers share, c[M, 2 C D], and their gradient, f32. */
  sharedKv(layer: number): Tensor {
    return this.#cut(this.of.beside.shared.get(layer)!);
  }
  sharedGradient(layer: number): Tensor {
    return this.#cut(this.workspace.shared.get(layer)!);
  }

  /** The layer's own input, c[M, size]. */
  ownInput(): Tensor {
    const { size } = this.program.operations.find((of) => of.op === "perLayer")!;
    return columnsFrom(this.#cut(this.of.ownInputs()!), this.program.layer * size, size);
  }

  factor(name: string): Tensor {
    return this.of.weights.factors.get(name)!;
  }

  /** f32[size] */
  norm(weight: string | null, size: number): Tensor {
    return this.of.weights.norms.get(normKey(weight, size))!;
  }

  /** c[M, width], memory of what linears add to a gradient. */
  added(width: number): Tensor {
    return this.#working(addedOf(width));
  }

  #working(kind: string): Tensor {
    return this.#cut(kind === STREAM ? this.workspace.grad : this.of.gradients!.get(kind)!);
  }

  linears(group: string): LinearWeights {
    return this.of.weights.linears[group as Group];
  }

  /** The adapters of the pass at a group of the layer; null where none of them targets it. */
  adapters(group: string): { readonly site: TargetGroup; readonly low: LowRows } | null {
    const low = this.batch.low.get(group as Group);
    return low ? { site: this.of.pool.site(this.program.layer, group as Group), low } : null;
  }

  /** s = A drop(x) of a group, as many elements as the pass has. */
  low(group: string): Tensor {
    return { ...this.of.acts.low.get(group)!, shape: [this.batch.low.get(group as Group)?.elements ?? 0] };
  }

  /** Whole products that methods need of a group, where they are kept. */
  products(group: string): Products {
    const kept = this.of.acts.products.get(group)!;
    const products: Record<string, Tensor> = {};
    for (const method in kept) products[method] = this.#cut(kept[method as keyof Products]!);
    return products;
  }

  #cut(tensor: Tensor): Tensor {
    return firstRows(tensor, this.batch.rows);
  }
}

// A range of decoder layers, forward and backward, as their programs say (program.ts, operations.ts).
//
// The backward pass ends at the first layer's input: nothing before it is trained.

import type { Recomputation } from "../base/recomputation.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { embedForward } from "../ops/embed.ts";
import { multiplyRows } from "../ops/multiply.ts";
import { rmsnormForward } from "../ops/rmsnorm.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import type { Batch } from "./batch.ts";
import type { Activations, ForwardWork, Workspace } from "./buffers.ts";
import type { Cached } from "./kv-cache.ts";
import { LayerPass, type LayerPassOptions, type RopeTables } from "./layer-pass.ts";
import type { Program } from "./program.ts";
import type { StageLayers, Weights } from "./weights.ts";

export class Decoder {
  constructor(
    readonly device: Device,
    readonly program: Program,
    readonly layerRange: StageLayers,
    readonly weights: Weights,
    readonly pool: AdapterPool,
    readonly ropes: RopeTables,
    readonly recomputation: Recomputation,
    /** Null where the model's embedding has no norm; `rstd`: f32[M] of memory. */
    readonly embeddingNorm: { readonly eps: number; readonly rstd: Tensor } | null,
  ) {}

  /**
   * Runs the layers on a micro-batch; `acts.inputs[0]` holds the input unless this is the first stage. Returns the stream. With
   * `cached` keys and values are kept, and `batch.bounds` are rows of the cache where rows see it.
   */
  forward(batch: Batch, acts: Activations, work: ForwardWork, cached: Cached | null = null): Tensor {
    const { device, weights, layerRange, program } = this;
    this.refresh();
    if (layerRange.first) {
      const x = firstRows(acts.inputs[0]!, batch.rows);
      embedForward(device, { ids: batch.ids, table: weights.embedding!, x });
      if (weights.embeddingScale) multiplyRows(device, { x, factor: weights.embeddingScale, y: x });
      if (weights.embeddingNorm) this.#norm(x, weights.embeddingNorm, batch.rows);
    }
    for (const i of program.keys())
      this.#pass(i, { batch, work, cached: cached && { ...cached, cache: cached.cache[i]! } }, acts).forward();
    return firstRows(acts.inputs[program.length]!, batch.rows);
  }

  /** The norm of the embedding's rows, in place. */
  #norm(x: Tensor, weight: Tensor, rows: number): void {
    const { eps, rstd } = this.embeddingNorm!;
    rmsnormForward(this.device, { x, weight, residual: null, y: x, rstd: firstRows(rstd, rows), eps });
  }

  /** Computes what follows from parameters that have changed since the last pass. */
  refresh(): void {
    this.pool.refresh((layer, group) => this.weights.layers[layer - this.layerRange.from]!.linears[group].weight);
  }

  /**
   * Turns the gradient of the stream in `work.grad` into that of the input, and adds to the adapters' gradients. On the first
   * stage the gradient of the embedding is left out.
   */
  backward(batch: Batch, acts: Activations, work: Workspace): void {
    for (const i of [...this.program.keys()].reverse()) {
      const pass = this.#pass(i, { batch, work, needsInput: !(this.layerRange.first && i === 0) }, acts);
      if (this.recomputation === "full") pass.recompute();
      pass.backward();
    }
  }

  #pass(i: number, of: Pick<LayerPassOptions, "batch" | "work" | "cached" | "needsInput">, acts: Activations): LayerPass {
    const { device, pool, ropes } = this;
    const [program, weights] = [this.program[i]!, this.weights.layers[i]!];
    const memory = { acts: acts.layers[i]!, x: acts.inputs[i]!, out: acts.inputs[i + 1]! };
    return new LayerPass({ device, pool, ropes, program, weights, ...memory, ...of });
  }
}

// A range of decoder layers, forward and backward, as their programs say (program.ts, operations.ts).
//
// The backward pass ends with the first layer in which an adapter of the pass acts, or at the embedding where an adapter trains
// that.

import { keepsInputsAlone, type Recomputation } from "../base/recomputation.ts";
import { firstRows } from "../device/arena.ts";
import type { Device, Tensor } from "../device/device.ts";
import { embedForward } from "../ops/embed.ts";
import { fewEmbed } from "../ops/fewtables.ts";
import { multiplyRows } from "../ops/multiply.ts";
import { rmsnormForward } from "../ops/rmsnorm.ts";
import { embedAdapted, embeddingGradient } from "./adapted-tables.ts";
import type { AdapterPool } from "./adapter-pool.ts";
import type { Batch } from "./batch.ts";
import type { Activations, ForwardWork, Workspace } from "./buffers.ts";
import type { Cached } from "./kv-cache.ts";
import { LayerPass, type LayerPassOptions, type RopeTables } from "./layer-pass.ts";
import { fetchOwnInputs, ownInputs } from "./own-inputs.ts";
import type { LayerProgram, Program } from "./program.ts";
import { beforeAttention } from "./shared-layers.ts";
import type { StageLayers, Weights } from "./weights.ts";

/** What a pass has begun before its layers run: makes later work wait for what was fetched; null for nothing. */
export type PreparedPass = { readonly fetched: (() => void) | null };

export class Decoder {
  constructor(
    readonly device: Device,
    readonly program: Program,
    readonly layerRange: StageLayers,
    readonly weights: Weights,
    readonly pool: AdapterPool,
    readonly ropes: RopeTables,
    readonly recomputation: Recomputation,
    /** The layers whose attention's input is kept, by their places in the program. */
    readonly kept: ReadonlySet<number>,
    readonly normEps: number,
    /** Null where the model's embedding has no norm; `rstd`: f32[M] of memory. */
    readonly embeddingNorm: { readonly eps: number; readonly rstd: Tensor } | null,
  ) {}

  /**
   * Begins what a pass needs of its tokens alone, concurrently with what is enqueued until `forward`, which takes what is
   * returned.
   */
  prepare({ ids, rows }: Batch, acts: Activations): PreparedPass {
    const { device, weights } = this;
    const into = acts.ownInputs && firstRows(acts.ownInputs, rows);
    return { fetched: weights.own && into ? fetchOwnInputs(device, weights.own, ids, into) : null };
  }

  /**
   * Runs the layers on a micro-batch; `acts.inputs[0]` holds the input unless this is the first stage. Returns the stream. With
   * `cached` keys and values are kept, and `batch.bounds` are rows of the cache where rows see it. `trains`: a backward pass
   * follows.
   */
  forward(
    batch: Batch,
    acts: Activations,
    work: ForwardWork,
    { fetched }: PreparedPass,
    { cached, trains }: { readonly cached: Cached | null; readonly trains: boolean } = { cached: null, trains: false },
  ): Tensor {
    const { device, weights, layerRange, program } = this;
    this.refresh();
    if (layerRange.first) {
      const x = firstRows(acts.inputs[0]!, batch.rows);
      embedForward(device, { ids: batch.ids, table: weights.embedding!, x });
      if (batch.embedding) embedAdapted(device, batch.embedding, batch.ids, x, acts.embedded);
      const own = batch.ofTables?.embedding;
      if (own) fewEmbed(device, { x, ...batch, rowAdapter: batch.rowAdapter!, ...own.site, tokenRow: own.tokenRow });
      if (weights.embeddingScale) multiplyRows(device, { x, factor: weights.embeddingScale, y: x });
      if (weights.embeddingNorm) this.#norm(x, weights.embeddingNorm, batch.rows);
    }
    let isFetching = fetched !== null;
    // The first layer asks late: by then the rows have come while it computed.
    const ownInputs = (): Tensor | null => {
      if (isFetching) this.#ownInputs(batch, acts, work, fetched!);
      isFetching = false;
      return acts.ownInputs;
    };
    const passOf = (i: number): LayerPass | null => {
      const layer = program[i];
      if (!layer) return null;
      const source = sourceOf(layer);
      const own = cached && {
        ...{ ...cached, cache: cached.cache[(source ?? layer.layer) - program[0]!.layer]! },
        isOwn: source === null,
      };
      return this.#pass(i, { batch, work, cached: own, ownInputs }, acts);
    };
    let [pass, hasBegun] = [passOf(0), false];
    for (let i = 0; pass; i++) {
      const next = passOf(i + 1);
      const streams = trains ? acts.hostStreams : null;
      streams?.beforeForward(i, batch.rows);
      const isKept = streams !== null && this.kept.has(i);
      const then = { after: beforeAttention(program[i]!).length, run: () => streams?.afterInput(i, batch.rows) };
      hasBegun = pass.forward(hasBegun ? 1 : 0, next, isKept ? then : null);
      pass = next;
    }
    return firstRows(acts.inputs[program.length]!, batch.rows);
  }

  /** What layers have of tokens besides the stream; its embedding is made again where another stage has it. */
  #ownInputs({ ids, rows, rowAdapter }: Batch, acts: Activations, work: ForwardWork, fetched: () => void): void {
    const { device, weights, layerRange, normEps: eps } = this;
    const own = work.ownInputs!;
    const x = firstRows(layerRange.first ? acts.inputs[0]! : own.embedded, rows);
    if (!layerRange.first) {
      embedForward(device, { ids, table: weights.embedding!, x });
      if (weights.embeddingScale) multiplyRows(device, { x, factor: weights.embeddingScale, y: x });
    }
    fetched();
    ownInputs(device, weights.own!, own, {
      ...{ x, eps, into: firstRows(acts.ownInputs!, rows) },
      isByRow: rowAdapter !== null,
    });
  }

  /** The norm of the embedding's rows, in place. */
  #norm(x: Tensor, weight: Tensor, rows: number): void {
    const { eps, rstd } = this.embeddingNorm!;
    rmsnormForward(this.device, { x, weight, residual: null, y: x, rstd: firstRows(rstd, rows), eps });
  }

  /** Computes what follows from parameters that have changed since the last pass. */
  refresh(): void {
    this.pool.refresh((layer, group) => this.weights.layers[layer - this.program[0]!.layer]!.linears[group].weight);
  }

  /**
   * Turns the gradient of the stream in `work.grad` into that of the input, and adds to the adapters' gradients. On the first
   * stage the gradient of the input is computed only where an adapter trains the embedding. Layers before `from` are left out:
   * no adapter of the pass acts there, and the gradient of their output is what the one after them left. `hasLast`: what the
   * last layer has computed is where it left it, so that it need not be computed again.
   */
  backward(
    batch: Batch,
    acts: Activations,
    work: Workspace,
    { hasLast, from }: { readonly hasLast: boolean; readonly from: number },
  ): void {
    const ownInputs = () => acts.ownInputs;
    for (const gradient of work.shared.values()) this.device.zero(firstRows(gradient, batch.rows));
    const { device, layerRange, weights } = this;
    for (const i of [...this.program.keys()].reverse()) {
      // Streams that wait in host memory come and go in pairs, layer by layer.
      if (this.program[i]!.layer < from && !acts.hostStreams) break;
      const needsInput = !(layerRange.first && i === 0) || batch.embedding !== null;
      acts.hostStreams?.beforeBackward(i, batch.rows);
      const pass = this.#pass(i, { batch, work, gradients: work.gradients[i]!, ownInputs, needsInput }, acts);
      const isThere = hasLast && i === this.program.length - 1;
      if (keepsInputsAlone(this.recomputation) && !isThere)
        pass.recompute(this.kept.has(i) ? beforeAttention(this.program[i]!) : []);
      pass.backward();
      acts.hostStreams?.afterBackward(i, batch.rows);
    }
    if (!batch.embedding) return;
    const dx = firstRows(work.grad, batch.rows);
    if (weights.embeddingScale) multiplyRows(device, { x: dx, factor: weights.embeddingScale, y: dx });
    embeddingGradient(device, batch.embedding, dx, acts.embedded, work.ds);
  }

  #pass(
    i: number,
    of: Pick<LayerPassOptions, "batch" | "work" | "gradients" | "cached" | "ownInputs" | "needsInput">,
    acts: Activations,
  ): LayerPass {
    const { device, pool, ropes } = this;
    const program = this.program[i]!;
    const weights = this.weights.layers[program.layer - this.program[0]!.layer]!;
    const memory = { acts: acts.layers[i]!, x: acts.inputs[i]!, out: acts.inputs[i + 1]!, beside: acts };
    return new LayerPass({ device, pool, ropes, program, weights, ...memory, ...of });
  }
}

/** The layer whose keys and values a layer reads; null: its own. */
const sourceOf = ({ operations }: LayerProgram): number | null => operations.find((of) => of.op === "sharedKv")?.source ?? null;

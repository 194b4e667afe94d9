// A stage: a range of layers on one device with one adapter pool, one decoder and, where it generates, a KV cache. It trains,
// evaluates and generates with the same weights, in the order of its requests, and decides nothing.

import { now } from "../base/clock.ts";
import { invariant } from "../base/errors.ts";
import { layersIn } from "../base/layers.ts";
import { expertFormatOf } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import { Later, type StageHandlers } from "../bus/bus.ts";
import type { OptimizerStep, SequenceLoss } from "../bus/messages.ts";
import { Arena, firstRows, rowsFrom } from "../device/arena.ts";
import type { Device } from "../device/device.ts";
import { valuesOf } from "../device/packed.ts";
import { toF32 } from "../files/convert.ts";
import type { Link } from "../link/link.ts";
import type { StageAdapter } from "../methods/adapter.ts";
import { BLOCKS } from "../methods/optimizers.ts";
import { firstLayerOf } from "../methods/placement.ts";
import type { TableKind } from "../methods/tables.ts";
import type { BatchTables, GenerationBatch, MicroBatch, NextTokens } from "../schedule/micro-batch.ts";
import { AdapterPool } from "./adapter-pool.ts";
import { type Batch, writeBatch } from "./batch.ts";
import type { Activations, StageSizes } from "./buffers.ts";
import { contrastsOf, type Ground, withSimilar } from "./contrast.ts";
import { Decoder } from "./decoder.ts";
import { ExpertLoads } from "./expert-load.ts";
import { requireFormat } from "./formats.ts";
import { Generating } from "./generating.ts";
import { fillInitial } from "./initialise.ts";
import type { Cached } from "./kv-cache.ts";
import { enqueueLosses } from "./losses.ts";
import { openBuffers } from "./open-buffers.ts";
import { stepTable } from "./optimizer.ts";
import { measurePeak } from "./peak.ts";
import { adaptersOf, Recorder, timed } from "./recorder.ts";
import { tablePositions } from "./rope.ts";
import { type StageBuffers, stageScratchBytes } from "./stage-buffers.ts";
import { withTop } from "./top.ts";
import { noOriginal, type OriginalWeight } from "./weight-source.ts";
import { lossOf, lossWithGradient } from "./weighted-loss.ts";
import { type FillTensor, hostWeightBytes, loadWeights, type StageLayers, type Weights, weightBytes } from "./weights.ts";

export type StageConfig = { readonly spec: ModelSpec; readonly layerRange: StageLayers; readonly sizes: StageSizes };

export type Neighbours = { readonly previous: Link | null; readonly next: Link | null };

/** A packed batch after its forward pass; `slot` is the memory that it holds. */
type InFlight<T extends BatchTables = MicroBatch> = {
  readonly batch: Batch;
  readonly acts: Activations;
  readonly tables: T;
  readonly slot: number;
  /** Resolves when the next stage has the stream, on the last at once. */
  readonly sent: Promise<void>;
};

export class Stage implements Disposable {
  readonly #loads = new ExpertLoads();
  readonly #inFlight = new Map<number, InFlight>();
  readonly #recorder: Recorder;
  readonly #free: number[];
  /** The packed batch that ran last, while it awaits its backward pass and the memory of its last layer is as it left it. */
  #latest: InFlight | null = null;
  /** Resolves when the previous stage has the gradient of the latest backward pass. */
  #leaving: Promise<void> = Promise.resolve();
  /** The error of the first pass that failed. */
  #failure: { readonly error: unknown } | null = null;
  #generating: Generating | null = null;

  private constructor(
    readonly device: Device,
    readonly config: StageConfig,
    readonly pool: AdapterPool,
    readonly decoder: Decoder,
    private readonly arenas: readonly Disposable[],
    private readonly buffers: StageBuffers,
    private readonly weights: Weights,
    private readonly neighbours: Neighbours,
    private readonly freeBefore: number,
    private readonly original: OriginalWeight,
  ) {
    this.#free = buffers.passes.map((_, i) => i);
    this.#recorder = new Recorder(device);
  }

  /**
   * Takes all memory of the stage but that of adapters, each of which takes its own when it joins, and loads the frozen
   * weights through `fill`. `original` reads a weight again, for adapters that begin as a part of it.
   */
  static async open(
    device: Device,
    config: StageConfig,
    fill: FillTensor,
    neighbours: Neighbours,
    original: OriginalWeight = noOriginal,
  ): Promise<Stage> {
    const { spec, layerRange, sizes } = config;
    const freeBefore = device.memory().free;
    const { slots, format, gradients } = sizes;
    for (const held of [format, expertFormatOf(sizes)]) requireFormat(device, held);
    const weightArena = new Arena(device, weightBytes(spec, layerRange, device.compute, sizes), "the base model's weights");
    const hostBytes = hostWeightBytes(spec, device.compute);
    const hostArena = hostBytes > 0 ? new Arena(device, hostBytes, "the embeddings of its layers", "host") : null;
    const weights = await loadWeights(device, { device: weightArena, host: hostArena }, spec, layerRange, sizes, fill);
    const pool = new AdapterPool(device, spec, layerRange, slots, sizes.inFlight > 0 ? gradients : null, sizes);
    device.reserveScratch(stageScratchBytes(device, spec, layerRange, sizes));
    const { program, kept, buffers, held } = await openBuffers(device, spec, layerRange, sizes);
    const { ropes, embeddingNorm } = buffers;
    const { recomputation } = sizes;
    const decoder = new Decoder(
      device,
      program,
      layerRange,
      weights,
      pool,
      ropes,
      recomputation,
      kept,
      spec.normEps,
      embeddingNorm,
    );
    const arenas = [weightArena, ...(hostArena ? [hostArena] : []), pool, ...held];
    return new Stage(device, config, pool, decoder, arenas, buffers, weights, neighbours, freeBefore, original);
  }

  /** The stage's side of the bus, once it is open. */
  handlers(): Omit<StageHandlers, "open"> {
    return {
      forward: ({ pass, batch }) => this.#whole(() => this.#forward(pass, batch)),
      backward: ({ pass, logProbs }) => this.#whole(() => this.#backward(pass, logProbs)),
      evaluate: ({ batch, logProbs, top }) => this.#whole(() => this.evaluate(batch, logProbs, top)),
      decode: ({ batch }) => this.#whole(() => this.#decode(batch)),
      squares: async ({ adapters }) => new Later((await this.pool.enqueueSquares(adapters)).found),
      loads: async ({ adapters }) => new Later(this.#loads.take(adapters)),
      share: ({ slot, what, values }) => this.pool.shareGradient(slot, what, values),
      step: async ({ steps }) => {
        await this.step(steps);
        return null;
      },
      admit: async ({ slot, adapter, layer }) => {
        await this.admit(slot, adapter, layer);
        return null;
      },
      release: async ({ slot }) => {
        await this.#vacate(slot);
        return null;
      },
      offload: async ({ slot }) => new Later(timed(this.pool.offload(slot))),
      fetch: async ({ slot }) => new Later(timed(this.pool.fetch(slot))),
      read: async ({ slot, what }) => new Later((await this.pool.snapshot(slot, what)).values),
      write: async ({ slot, blocks }) => {
        for (const what of [...BLOCKS, "grads"] as const) if (blocks[what]) this.pool.write(slot, what, blocks[what]);
        return null;
      },
      clock: async () => ({ now: now(), takenBytes: this.#takenBytes }),
      peak: () => measurePeak(this.device, this.config.sizes.format),
      trace: ({ passes, kernels }) => this.#recorder.record(passes, kernels),
    };
  }

  /**
   * Of a GPU, including what its driver takes. On a CPU free memory depends on other programs, so only what is
   * allocated counts.
   */
  get #takenBytes(): number {
    const { device } = this;
    return device.kind === "cpu" ? device.allocated : this.freeBefore - device.memory().free;
  }

  async forward(pass: number, batch: MicroBatch): Promise<void> {
    await (await this.#forward(pass, batch)).reply;
    await this.device.idle();
  }

  /** Resolves when the pass is enqueued: what comes next may be, while the device computes it. */
  async #forward(pass: number, batch: MicroBatch): Promise<Later<null>> {
    const inFlight = await this.#run("forward", pass, batch);
    this.#inFlight.set(pass, inFlight);
    this.#latest = inFlight;
    if (this.config.spec.experts) await this.#loads.add(this.device, inFlight.acts);
    await this.#unlessConcurrent(inFlight.sent);
    return new Later(inFlight.sent.then(() => null));
  }

  /** A CPU computes the next pass in the thread that sends the results of this one, where signals and requests arrive too. */
  async #unlessConcurrent(sent: Promise<void>): Promise<void> {
    if (this.device.isConcurrent) return;
    await sent;
    await this.device.idle();
  }

  /** The last stage begins with the loss and returns it. */
  async backward(pass: number, logProbs = false): Promise<readonly SequenceLoss[] | null> {
    const losses = await (await this.#backward(pass, logProbs)).reply;
    await this.device.idle();
    return losses;
  }

  /** As #forward; nothing waits for the losses but the reply. */
  async #backward(pass: number, logProbs = false): Promise<Later<readonly SequenceLoss[] | null>> {
    const { device, decoder, neighbours } = this;
    const inFlight = this.#inFlight.get(pass);
    invariant(inFlight, `backward of pass ${pass}, which has had no forward`);
    const work = this.buffers.backward!;
    const { batch, acts, tables, slot } = inFlight;
    const hasLast = this.buffers.keepsLast && this.#latest === inFlight;
    this.#latest = null;
    const { first, last } = this.config.layerRange;
    const grad = firstRows(work.grad, batch.rows);
    const timed = this.#recorder.timer(pass, adaptersOf(tables));
    await this.#leaving; // the gradient of the pass before this one, from the same memory
    if (!last) await timed("receive", () => neighbours.next!.receive(`gradient.${pass}`, grad));
    const contrasts = await timed("backward", async () => {
      this.pool.beginSteps(adaptersOf(tables));
      const found = last ? await lossWithGradient(this.#ground(inFlight), inFlight, grad) : null;
      const from = Math.min(...adaptersOf(tables).map((slot) => firstLayerOf(this.pool.adapter(slot)!)));
      decoder.backward(batch, acts, work, { hasLast, from });
      return found;
    });
    const losses = last ? await enqueueLosses(device, batch, tables.sequences, logProbs) : null;
    const leaving = first ? Promise.resolve() : timed("send", () => neighbours.previous!.send(`gradient.${pass}`, grad));
    leaving.catch(() => undefined); // the reply fails with it
    this.#leaving = leaving;
    await this.#unlessConcurrent(leaving);
    this.#inFlight.delete(pass);
    this.#free.push(slot);
    const reply = async () => {
      await leaving;
      return losses && withSimilar(await losses.found, contrasts);
    };
    return new Later(reply());
  }

  /** Losses without gradients; with `top` also as many of the likeliest tokens at each target. */
  async evaluate(batch: MicroBatch, logProbs = false, top = 0): Promise<readonly SequenceLoss[] | null> {
    const inFlight = await this.#run("evaluate", null, batch);
    await inFlight.sent;
    this.#free.push(inFlight.slot);
    if (!this.config.layerRange.last) return null;
    const contrasts = await this.#recorder.timer(null, adaptersOf(batch))("evaluate", () => {
      const ground = this.#ground(inFlight);
      lossOf(ground, inFlight.batch, null);
      return contrastsOf(ground, batch);
    });
    const losses = withSimilar(
      await (await enqueueLosses(this.device, inFlight.batch, batch.sequences, logProbs)).found,
      contrasts,
    );
    await this.device.idle();
    return top === 0 ? losses : withTop(this.#ground(inFlight), inFlight.batch, batch, losses, top);
  }

  /**
   * Reads prompts or extends sequences whose keys and values are kept. The last stage returns the token that follows each
   * sequence, in their order.
   */
  async decode(batch: GenerationBatch): Promise<NextTokens | null> {
    const found = await this.#decode(batch);
    return found instanceof Later ? await found.reply : found;
  }

  async #decode(batch: GenerationBatch): Promise<NextTokens | null | Later<NextTokens>> {
    const { device, config, pool, decoder, buffers, neighbours } = this;
    this.#latest = null;
    this.#generating ??= new Generating({
      ...{ device, config, pool, decoder, buffers, neighbours, recorder: this.#recorder },
      ground: (passed) => this.#ground(passed),
      run: async (batch, cached, then) => {
        const inFlight = await this.#run("decode", null, batch, cached);
        await inFlight.sent;
        this.#free.push(inFlight.slot);
        return await then(inFlight);
      },
      borrow: async (work) => {
        const slot = this.#free.pop()!;
        const found = await work(buffers.passes[slot]!.acts, slot);
        this.#free.push(slot);
        return found;
      },
    });
    return await this.#generating.decode(batch);
  }

  async step(steps: readonly OptimizerStep[]): Promise<void> {
    for (const step of steps) if ("dropped" in step) this.pool.dropGradients(step.adapter);
    const made = steps.flatMap((step) => ("dropped" in step ? [] : step));
    const table = stepTable(made, this.config.sizes.slots);
    const adapters = made.map(({ adapter }) => adapter);
    await this.#recorder.timer(null, adapters)("step", () => this.pool.step(table));
  }

  /** Gives a slot to an adapter, as it is before its first step: a function of its seed. `layer`: see bus/messages.ts. */
  async admit(slot: number, adapter: StageAdapter, layer?: number): Promise<void> {
    const { spec, layerRange } = this.config;
    const anew = layer === undefined || layer === layersIn(layerRange)[0];
    if (anew) {
      await this.#vacate(slot);
      this.pool.admit(slot, adapter);
    }
    const { init } = adapter;
    if (init === null) return;
    const { from: first, to: end } = layerRange;
    const layers = layer === undefined ? layerRange : { from: Math.max(first, layer), to: Math.min(end, layer + 1) };
    const rowsOf = (kind: TableKind, tokens: readonly number[]) => this.#rowsOf(kind, tokens);
    const from = { spec, layerRange: layers, original: this.original, rowsOf };
    await fillInitial(this.pool, from, slot, { ...adapter, init });
    if (layers.to < end) return;
    if (this.pool.begin(slot)) this.decoder.refresh(); // now: a read of the adapter includes it
  }

  /** Rows of a table as the device has them, f32[tokens, hidden]. */
  async #rowsOf(kind: TableKind, tokens: readonly number[]): Promise<Float32Array> {
    const table = valuesOf(this.weights[kind]!);
    const { hidden } = this.config.spec;
    const rows = new Float32Array(tokens.length * hidden);
    for (const [i, token] of tokens.entries())
      rows.set(toF32(await this.device.read(rowsFrom(table, token, 1)), table.dtype), i * hidden);
    return rows;
  }

  /** A driver waits for all work before it releases memory, and blocks: so that is waited for before. */
  async #vacate(slot: number): Promise<void> {
    if (!this.pool.adapter(slot)) return;
    await this.pool.settled(slot);
    await this.device.idle();
    this.pool.release(slot);
  }

  [Symbol.dispose](): void {
    for (const arena of this.arenas) arena[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }

  /**
   * Runs a pass. After a pass that failed, those that were already sent would lack its results and its memory: they fail with
   * the same error, so that the first reply to arrive names the cause.
   */
  async #whole<T>(pass: () => Promise<T>): Promise<T> {
    if (this.#failure) throw this.#failure.error;
    const failed = (error: unknown): void => {
      this.#failure ??= { error };
    };
    try {
      const found = await pass();
      if (found instanceof Later) found.reply.catch(failed);
      return found;
    } catch (error) {
      failed(error);
      throw error;
    }
  }

  async #run<T extends BatchTables>(
    kind: "forward" | "evaluate" | "decode",
    pass: number | null,
    tables: T,
    cached: Cached | null = null,
  ): Promise<InFlight<T>> {
    const { passes, work } = this.buffers;
    this.#latest = null;
    invariant(tables.ids.length <= this.config.sizes.rows, `${tables.ids.length} rows in a pass, more than planned`);
    const slot = this.#free.pop();
    invariant(slot !== undefined, `more than ${passes.length} packed batches in flight`);
    const { acts, batch: memory } = passes[slot]!;
    const positions = tablePositions(this.config, tables.positions, (row) => {
      return this.pool.adapter(tables.tileAdapter[Math.floor(row / this.device.rowTile)]!)?.isLong === true;
    });
    const batch = writeBatch(this.device, this.pool, memory, { ...tables, positions });
    for (const [group, { elements }] of batch.embedding ? [...batch.low, ["embedding", batch.embedding] as const] : batch.low)
      invariant(elements <= (this.config.sizes.low[group] ?? 0), `${elements} elements of s in ${group}, more than planned`);
    const { first, last } = this.config.layerRange;
    const tag = `activation.${pass ?? kind}`;
    const timed = this.#recorder.timer(pass, adaptersOf(tables));
    const into = firstRows(acts.inputs[0]!, batch.rows);
    const prepared = this.decoder.prepare(batch, acts);
    if (!first) await timed("receive", () => this.neighbours.previous!.receive(tag, into));
    const how = { cached, trains: kind === "forward" };
    const out = await timed(kind, () => this.decoder.forward(batch, acts, work, prepared, how));
    const sent = last ? Promise.resolve() : timed("send", () => this.neighbours.next!.send(tag, out));
    sent.catch(() => undefined); // what waits for it has the error
    return { batch, acts, tables, slot, sent };
  }

  #ground({ batch, acts }: Pick<InFlight<BatchTables>, "batch" | "acts">): Ground {
    const { normEps: eps, vocab: classes, logitScale: scale, logitCap: cap } = this.config.spec;
    const head = { norm: this.weights.finalNorm!, weight: this.weights.head!, eps, classes, scale, cap };
    return { device: this.device, head, buffers: this.buffers.head!, hidden: firstRows(acts.inputs.at(-1)!, batch.rows) };
  }
}

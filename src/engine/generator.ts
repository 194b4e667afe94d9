// A whole model on one device that generates: it runs the passes that it is given, and decides nothing.

import type { ModelSpec } from "../base/spec.ts";
import type { BaseModel } from "../bus/messages.ts";
import { Arena, firstRows, rowsFrom } from "../device/arena.ts";
import type { Device } from "../device/device.ts";
import { openDevice } from "../device/open.ts";
import { scratchBytes } from "../device/scratch.ts";
import { sameOrderPlaces } from "../device/tile.ts";
import { toF32 } from "../files/convert.ts";
import type { PoolAdapter } from "../methods/adapter.ts";
import { type FactorTensor, putFactor } from "../methods/layout.ts";
import { rowsGather } from "../ops/embed.ts";
import { linearForward } from "../ops/linear.ts";
import { rmsnormForward } from "../ops/rmsnorm.ts";
import type { GenerationBatch, Tile } from "../schedule/decode.ts";
import { AdapterPool } from "./adapter-pool.ts";
import { writeBatch } from "./batch.ts";
import { countBytes } from "./buffers.ts";
import { Decoder } from "./decoder.ts";
import { type GenerationSizes, takeGeneration } from "./generation.ts";
import { programOf } from "./program.ts";
import { ropeTables } from "./rope.ts";
import { requireFormat } from "./stage.ts";
import { weightsOf } from "./weight-source.ts";
import { type FillTensor, loadWeights, type Weights, weightBytes, wholeModel } from "./weights.ts";

type Buffers = ReturnType<typeof takeGeneration>;

export class Generator implements Disposable {
  readonly tile: Tile;

  private constructor(
    readonly device: Device,
    readonly spec: ModelSpec,
    readonly sizes: GenerationSizes,
    private readonly pool: AdapterPool,
    private readonly weights: Weights,
    private readonly decoder: Decoder,
    private readonly buffers: Buffers,
    private readonly arenas: readonly Disposable[],
  ) {
    this.tile = { rows: device.rowTile, sameOrder: sameOrderPlaces(device) };
  }

  /** Takes all memory that it will ever use, and loads the frozen weights through `fill`. */
  static async open(device: Device, spec: ModelSpec, sizes: GenerationSizes, fill: FillTensor): Promise<Generator> {
    const { rows, rank, groups, format } = sizes;
    const layerRange = wholeModel(spec);
    requireFormat(device, format);
    const weightArena = new Arena(device, weightBytes(spec, layerRange, device.compute, format), "the base model's weights");
    const weights = await loadWeights(device, weightArena, spec, layerRange, format, fill);
    const pool = new AdapterPool(device, spec, layerRange, Math.max(1, sizes.adapters), sizes);
    const need = { spec, groups, rows, rank, adapters: sizes.adapters, format, layout: pool.layout };
    device.reserveScratch(scratchBytes(device, need));
    const carve = (take: Parameters<typeof takeGeneration>[0]) => takeGeneration(take, device, spec, sizes);
    const arena = new Arena(device, countBytes(carve), "keys, values and activations");
    const buffers = carve((dtype, ...shape) => arena.tensor(dtype, ...shape));
    const { cos, sin } = ropeTables(spec, sizes.capacity);
    device.write(buffers.rope.cos, cos);
    device.write(buffers.rope.sin, sin);
    const decoder = new Decoder(device, programOf(spec, layerRange), layerRange, weights, pool, buffers.rope, "full");
    return new Generator(device, spec, sizes, pool, weights, decoder, buffers, [weightArena, pool, arena]);
  }

  /** Puts an adapter into a slot; what no factor fills is zero. */
  load(slot: number, adapter: PoolAdapter, factors: Iterable<FactorTensor>): void {
    this.pool.admit(slot, adapter);
    const block = new Float32Array(new ArrayBuffer(4 * this.pool.layout.size));
    for (const { layer, linear, factor, values } of factors)
      putFactor(block, this.pool.place(slot, layer, linear, factor), values);
    this.pool.write(slot, "params", block);
  }

  /** The logits of each sequence's next token, in the order of the pass's targets. */
  async run(pass: GenerationBatch, sequences: number): Promise<readonly Float32Array[]> {
    const { device, buffers } = this;
    const batch = { ...writeBatch(device, buffers.batch, pass), presence: this.pool.presence(pass.tileAdapter) };
    device.write(buffers.places, pass.places);
    const cached = { cache: buffers.cache, places: firstRows(buffers.places, batch.rows), from: pass.from };
    const hidden = this.decoder.forward(batch, buffers.acts, buffers.work, cached);

    const { normEps: eps, vocab } = this.spec;
    const cut = (t: Buffers["head"]["x"]) => firstRows(t, batch.targets);
    const [x, h, rstd] = [cut(buffers.head.x), cut(buffers.head.h), cut(buffers.head.rstd)];
    rowsGather(device, { x: hidden, rows: batch.targetRows, y: x });
    rmsnormForward(device, { x, weight: this.weights.finalNorm!, y: h, rstd, eps });
    const logits: Float32Array[] = [];
    const { logits: y } = buffers.head;
    const { rows: tileRows, sameOrder } = this.tile;
    for (let from = 0; from < batch.targets; from += tileRows) {
      const layerRange = rowsFrom(h, from, tileRows);
      linearForward(device, { x: layerRange, weight: this.weights.head!, bias: null, residual: null, y, lora: null });
      const seats = sameOrder.slice(0, sequences - logits.length);
      const values = toF32(await device.read(firstRows(y, seats.at(-1)! + 1)), y.dtype);
      const width = y.shape[1]!;
      for (const row of seats) logits.push(values.subarray(row * width, row * width + vocab));
    }
    await device.idle();
    return logits;
  }

  [Symbol.dispose](): void {
    for (const arena of this.arenas) arena[Symbol.dispose]();
    this.device[Symbol.dispose]();
  }
}

/** A generator on a device of its own, over a base model's files. Disposing it closes the device. */
export async function openGenerator(
  on: Parameters<typeof openDevice>[0],
  model: BaseModel,
  spec: ModelSpec,
  sizes: GenerationSizes,
): Promise<Generator> {
  const device = openDevice(on);
  try {
    using source = weightsOf(model, spec, device);
    return await Generator.open(device, spec, sizes, source.fill);
  } catch (error) {
    device[Symbol.dispose]();
    throw error;
  }
}

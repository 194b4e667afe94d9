// A tiny random model that generates, with adapters of random factors: for tests of passes and of batch invariance.

import type { WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import type { Sampling } from "../../src/base/sample.ts";
import { alignUp, range, sizeOf, sum } from "../../src/base/shape.ts";
import { type ModelSpec, shortPositions } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Device } from "../../src/device/device.ts";
import { rowsFor } from "../../src/engine/generation/kv-cache.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor } from "../../src/engine/weights/weights.ts";
import { linearShape } from "../../src/families/linears.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { type FactorTensor, isOfTable, tensorsIn } from "../../src/methods/layout.ts";
import { rankAt, sharingOf } from "../../src/methods/placement.ts";
import { factorShape } from "../../src/methods/registry.ts";
import { tableShape } from "../../src/methods/tables.ts";
import { blockBytes, lowSizes, lowWidths, productSizes } from "../../src/plan/adapter-memory.ts";
import { type GenerationSizes, tileOf } from "../../src/plan/generation.ts";
import { PIECE, tiledRows } from "../../src/schedule/decode.ts";
import type { GenerationBatch } from "../../src/schedule/micro-batch.ts";
import { type Generation, type GenerationEngine, generate } from "../../src/session/decoding/generate.ts";
import { readingOf } from "../../src/session/decoding/reading.ts";
import { writeAdapter } from "./factors.ts";
import { adapterOn, LINEARS, randomFill, wholeModel } from "./tiny.ts";

/** A cpu device whose sequences are extended a row each, as a GPU's are. */
export class RowDevice extends CpuDevice {
  override readonly hasFewRows = true;
}

export const GREEDY: Sampling = { temperature: 0, topK: 0, topP: 1 };

/** Adapters of unequal ranks and targets, one of them a DoRA. */
export const ADAPTERS: readonly PoolAdapter[] = [
  { rank: 3, scale: 1.1, targets: LINEARS },
  { rank: 16, scale: 0.5, targets: ["q_proj", "v_proj", "gate_proj", "down_proj"] },
  { rank: 5, scale: 0.8, targets: ["k_proj", "v_proj", "o_proj", "up_proj", "down_proj"], method: "dora" },
];

export function factorsFor(spec: ModelSpec, adapter: PoolAdapter, seed: number): FactorTensor[] {
  return tensorsIn(spec, { from: 0, to: spec.layers }, adapter).map((at): FactorTensor => {
    const rng = new Rng(
      seed,
      at.layer,
      (LINEARS as readonly string[]).indexOf(at.linear),
      ["A", "B", "M", "lambda_d", "lambda_b"].indexOf(at.factor),
    );
    const values = (size: number, scale: number, middle = 0) =>
      Float32Array.from({ length: size }, () => middle + scale * rng.normal());
    if (isOfTable(at)) return { ...at, values: values(sizeOf(tableShape(spec, adapter.tables![at.linear]!, at.factor)), 0.3) };
    const { in: width } = linearShape(spec, at.linear, at.layer);
    const shape = factorShape(spec, at.linear, at.factor, rankAt(adapter, at.layer, at.linear), at.layer, sharingOf(adapter));
    const size = sizeOf(shape);
    return {
      ...at,
      values: at.factor === "M" ? values(size, 0.2, 1) : values(size, at.factor === "A" ? 1 / Math.sqrt(width) : 0.4),
    };
  });
}

export type TinyGenerator = Disposable & GenerationEngine & { readonly stage: Stage; readonly sizes: GenerationSizes };

type GeneratorOptions = {
  readonly sequences?: number;
  /** Pages of the cache; left out, as many as all sequences may come to. */
  readonly pages?: number;
  /** Tokens of a sequence, at most. */
  readonly capacity?: number;
  /** Tokens of a prompt that is read by tiles, at least, where prompts are read in rows. */
  readonly tiledPrompt?: number | null;
  readonly format?: WeightFormat;
  /** The base model's weights; left out, random ones. */
  readonly fill?: FillTensor;
  /** Of an adapter; left out, random ones. */
  readonly factors?: (spec: ModelSpec, adapter: PoolAdapter, seed: number) => readonly FactorTensor[];
};

/** A stage that only generates, with the whole of a random model and all of ADAPTERS. */
export async function tinyGenerator(
  device: Device,
  spec: ModelSpec,
  {
    sequences = 8,
    pages,
    capacity = 128,
    tiledPrompt = 24,
    format = "dense",
    fill = randomFill(device, 1),
    factors = factorsFor,
  }: GeneratorOptions = {},
  wanted: readonly PoolAdapter[] = ADAPTERS,
): Promise<TinyGenerator> {
  const adapters = wanted.map((adapter) => adapterOn(spec, adapter));
  const tile = device.hasFewRows ? { ...tileOf(device), isApart: true } : tileOf(device);
  const least = alignUp(Math.max(160, Math.min(capacity, PIECE)), device.rowTile) + (adapters.length + 1) * device.rowTile;
  const rows = device.hasFewRows ? rowsFor(least) : least; // as many as a pass by rows is padded to
  const sizes: GenerationSizes = {
    slots: Math.max(1, adapters.length),
    rows,
    targets: tiledRows(sequences, tile),
    chunk: device.rowTile,
    layers: spec.layers,
    low: lowSizes(lowWidths(adapters, wholeModel(spec)), rows, device.rowTile),
    products: productSizes(adapters),
    gradients: [],
    hostBytes: 0,
    blockBytes: sum(adapters.map((adapter) => blockBytes(spec, wholeModel(spec), [adapter], device, false))),
    recomputation: "full",
    inFlight: 0,
    positions: capacity,
    format,
    cache: { sequences, capacity, ...(pages === undefined ? {} : { pages }) },
  };
  const config = { spec, layerRange: wholeModel(spec), sizes };
  const stage = await Stage.open(device, config, fill, { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) {
    await stage.admit(slot, { ...adapter, seed: 0, init: null });
    await writeAdapter(stage, slot, factors(spec, adapter, 50 + slot));
  }
  const run = async (pass: GenerationBatch) => (await stage.decode(pass))!;
  return {
    stage,
    tile,
    sizes,
    shortPositions: shortPositions(spec),
    reading: readingOf(spec, [device.kind]),
    tiledPrompt,
    run,
    [Symbol.dispose]: () => stage[Symbol.dispose](),
  };
}

/** Prompts of unequal lengths for each adapter and the base, `each` of them. */
export function tinyPrompts(spec: ModelSpec, each: number, adapters = ADAPTERS.length): Generation[] {
  const rng = new Rng(17);
  const lengths = [1, 7, 70, 24, 2, 25, 40];
  return range((adapters + 1) * each).map((i) => ({
    adapter: (i % (adapters + 1)) - 1,
    prompt: range(lengths[i % lengths.length]!).map(() => rng.below(spec.vocab)),
    limit: 5 + (i % 9),
    seed: 11,
  }));
}

/** All tokens of each. */
export async function generated(
  generator: GenerationEngine,
  wanted: readonly Generation[],
  sampling: Sampling = GREEDY,
  stops: ReadonlySet<number> = new Set(),
): Promise<number[][]> {
  const all = wanted.map(() => [] as number[]);
  for await (const { index, token } of generate(generator, wanted, sampling, stops)) all[index]!.push(token);
  return all;
}

/** The logits f32[vocab] of each sequence's next token. */
export async function nextLogits(generator: Pick<GenerationEngine, "run">, pass: GenerationBatch) {
  pass.choices.logits.fill(1);
  return (await generator.run(pass)).logits;
}

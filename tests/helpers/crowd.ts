// A crowd of adapters, no two alike, trained together for a few steps as a run does: for tests of what co-batching changes
// (nothing).

import { expect } from "bun:test";
import type { WeightFormat } from "../../src/base/precision.ts";
import type { Recomputation } from "../../src/base/recomputation.ts";
import { Rng } from "../../src/base/rng.ts";
import { alignUp, range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { type Bus, Later } from "../../src/bus/bus.ts";
import type { Device } from "../../src/device/device.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor } from "../../src/engine/weights.ts";
import { isOfExperts, type Linear, linearsOfModel } from "../../src/families/linears.ts";
import { sameBits } from "../../src/files/convert.ts";
import { localLink } from "../../src/link/local.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import type { FactorTensor } from "../../src/methods/layout.ts";
import { placed, rankAt, scaleAt } from "../../src/methods/placement.ts";
import { sharesRows } from "../../src/methods/tables.ts";
import { clipCoefficient, gradNormOf } from "../../src/schedule/clip.ts";
import { inputLength, pack, type Tokens } from "../../src/schedule/pack.ts";
import { pipeline } from "../../src/schedule/pipeline.ts";
import { needsSum, sumShared } from "../../src/session/shared-rows.ts";
import { readAdapter, writeAdapter } from "./factors.ts";
import { adapterOn, inExperts, randomFactors, randomFill, randomTokens, tinySizes } from "./tiny.ts";

export const STEPS = 4;

/** What the crowd is trained on. */
export type Ground = {
  readonly spec: ModelSpec;
  readonly open: () => Device;
  /** Rows of a pass: small enough that a crowd needs several passes a round. */
  readonly passRows: number;
  /** How the base's linear weights are held; left out, as the device computes. */
  readonly format?: WeightFormat;
  /** The base model's weights; left out, random ones. */
  readonly fill?: (device: Device) => FillTensor;
  /** Ranks in place of the crowd's own, which are small. */
  readonly ranks?: readonly number[];
  /** What the adapters train of embedding and head; left out, nothing. */
  readonly tables?: (i: number, spec: ModelSpec) => PoolAdapter["tables"];
  /** Tiles of a chunk of targets. */
  readonly chunkTiles?: number;
  /** Adapters that learn at a rate by which all their numbers are NaN after a step or two. */
  readonly lost?: readonly number[];
  /** What is computed again; left out, as tinySizes has it. */
  readonly recomputation?: Recomputation;
  /** Layers whose attention's input waits in host memory, where streams do. */
  readonly hostInputs?: number;
  /** Adapters act in experts (tiny.ts, inExperts). */
  readonly isInExperts?: true;
  /** The first layer in which an adapter acts, by its number in the crowd; left out, the model's first. */
  readonly firstLayer?: (i: number) => number;
};

/** Without what an adapter has before a layer. */
function actingFrom<T extends PoolAdapter>(adapter: T, { layers }: ModelSpec, from: number): T {
  const at = (layer: number, linear: Linear) => ({
    rank: rankAt(adapter, layer, linear),
    scale: scaleAt(adapter, layer, linear),
  });
  return {
    ...adapter,
    ...placed(layers, (layer, linear) => (layer >= from && at(layer, linear).rank > 0 ? at(layer, linear) : null)),
  };
}

const methodOf = (i: number) => (i % 8 === 2 || i % 8 === 5 ? "dora" : i % 8 === 6 ? "vera" : "lora");

/** Adapter `i` of a crowd: the first eight have small ranks, the later ones larger. */
const settings = (i: number, spec: ModelSpec, ranks?: readonly number[]) => ({
  adapter: {
    rank: ranks?.[i % ranks.length] ?? [3, 8, 16, 1, 5, 12, 7, 4][i % 8]! * (i < 8 ? 1 : 1 + (i % 5)),
    scale: 0.5 + 0.2 * (i % 8),
    targets: linearsOfModel(spec).filter(
      (linear, l) => (i % 3 === 0 || (l + i) % 3 !== 0) && (methodOf(i) === "lora" || !isOfExperts(linear)),
    ),
    method: methodOf(i),
    projectionSeed: i,
    optimizer: i % 8 === 1 || i % 8 === 2 ? "adamw-8bit" : "adamw",
  } satisfies PoolAdapter,
  seed: 1000 + i,
  dropout: [0.1, 0, 0.05, 0.3, 0.1, 0, 0.2, 0.1][i % 8]!,
  batchSize: [2, 3, 1, 4, 2, 2, 5, 3][i % 8]!,
  accumulation: [1, 2, 3, 1, 2, 1, 1, 2][i % 8]!,
  learningRate: 0.01 * (1 + (i % 8)),
  ratio: [1, 1, 4, 1, 16, 1, 1, 2.5][i % 8]!,
  maxGradNorm: i % 2 === 0 ? 0.5 : null,
});

const TOKENS = [5, 30, 17, 8, 41, 2, 50];
/** What an adapter of a crowd trains of embedding and head, for `Ground.tables`: products of either or both, rows of tokens. */
export function crowdTables(i: number, spec: ModelSpec): PoolAdapter["tables"] {
  const product = (rank: number, scale: number) => ({ rank, scale });
  const tokens = { tokens: [...TOKENS.slice(i % 3), 11 + (i % 8)] };
  const head = spec.tiedEmbeddings ? tokens : { tokens: [3, 44 - (i % 8), 21] };
  const all: readonly PoolAdapter["tables"][] = [
    { embedding: product(2, 0.9), head: product(3, 1.3) },
    { embedding: tokens, head },
    undefined,
    { head: product(20, 0.3) },
    { embedding: product(5, 0.6) },
    undefined,
    undefined,
    spec.tiedEmbeddings ? { embedding: tokens, head } : { embedding: product(9, 0.3), head: { tokens: [7, 9] } },
  ];
  return all[i % 8];
}

const samplesOf = (i: number, vocab: number): Tokens[] => {
  const rng = new Rng(i, 31);
  return range(7 + (i % 8)).map(() => randomTokens(rng, vocab, 2 + rng.below(25)));
};

export type Trained = { readonly losses: number[]; readonly factors: readonly FactorTensor[] };

/** Trains the adapters `who` together for a few steps each; `cuts` are the layers where a new stage begins. */
export async function train(
  who: readonly number[],
  { spec, open, passRows, format = "dense", fill = (device) => randomFill(device, 1), ranks, ...more }: Ground,
  cuts: readonly number[] = [],
): Promise<Map<number, Trained>> {
  const { isInExperts, tables, chunkTiles = 1, lost = [], recomputation = "selective", hostInputs = 0, firstLayer } = more;
  const crowd = who.map((i) => settings(i, spec, ranks));
  const ofExperts = isInExperts ? inExperts(spec) : null;
  const adapters = crowd.map(({ adapter, seed }, at) => {
    const whole = ofExperts?.[who[at]! % ofExperts.length] ?? adapterOn(spec, adapter);
    const own = firstLayer ? actingFrom(whole, spec, firstLayer(who[at]!)) : whole;
    const ofTables = adapter.method === "lora" ? tables?.(who[at]!, spec) : undefined;
    return { ...own, ...(ofTables ? { tables: ofTables } : {}), seed, init: "default" as const };
  });
  const edges = [0, ...cuts, spec.layers];
  const parts = range(edges.length - 1).map((i) => ({
    from: edges[i]!,
    to: edges[i + 1]!,
    first: i === 0,
    last: i === cuts.length,
  }));
  const devices = parts.map(open);
  const links = range(cuts.length).map((i) => localLink(devices[i]!, devices[i + 1]!));
  const stages = await Promise.all(
    parts.map((layerRange, i) => {
      const rows = alignUp(2 * passRows, devices[i]!.rowTile);
      const sizes = tinySizes(devices[i]!, spec, adapters, {
        layers: layerRange.to - layerRange.from,
        rows,
        targets: rows,
        format,
        chunk: chunkTiles * devices[i]!.rowTile,
        ...{ recomputation, hostInputs },
      });
      const neighbours = { previous: links[i - 1]?.[1] ?? null, next: links[i]?.[0] ?? null };
      return Stage.open(devices[i]!, { spec, layerRange, sizes }, fill(devices[i]!), neighbours);
    }),
  );
  const bus: Pick<Bus, "stages" | "request"> = {
    stages: stages.length,
    request: async (stage, { type, ...request }) => {
      const found: unknown = await (stages[stage]!.handlers() as unknown as Record<string, (of: object) => unknown>)[type]!(
        request,
      );
      return (found instanceof Later ? await found.reply : found) as never;
    },
  };
  try {
    for (const [adapter, seed] of who.entries())
      for (const stage of stages) {
        await stage.admit(adapter, adapters[adapter]!);
        await writeAdapter(stage, adapter, sharedAlike(await randomFactors(stage, adapter, seed), spec, adapters[adapter]!));
      }
    const data = who.map((i) => samplesOf(i, spec.vocab));
    const works = crowd.map(({ batchSize, accumulation, seed }, i) => ({
      lengths: data[i]!.map(inputLength),
      batchSize,
      accumulation,
      epochs: null,
      steps: STEPS,
      shuffle: true,
      seed,
    }));
    const losses = who.map(() => [] as number[]);
    const sums = who.map(() => 0);
    const { rowTile } = devices[0]!;
    const limits = { tokensPerMicrobatch: 1000, passRows, rowTile };
    const order = { kind: "lorapp", packing: "filled", stages: 1, inFlight: [1], sendBuffers: 1, ...limits } as const;
    for (const { action } of pipeline(
      works.map((work, adapter) => ({ adapter, work, from: 0 })),
      order,
    )) {
      if (action.kind === "forward") {
        const { id } = action.pass;
        const segments = action.pass.segments.map(({ adapter, rows, step, firstRow, miniBatch }) => {
          const samples = rows.map((row) => data[adapter]![row]!);
          const targets = sum(miniBatch.map((row) => sum(data[adapter]![row]!.mask.subarray(1))));
          const { seed, dropout } = crowd[adapter]!;
          return { adapter, samples, seed, step, dropout, firstRow, weight: 1 / targets };
        });
        const batch = pack(segments, adapters.length, rowTile);
        for (const stage of stages) await stage.forward(id, batch);
        const results = await stages.at(-1)!.backward(id);
        for (const stage of stages.slice(0, -1).reverse()) await stage.backward(id);
        for (const [i, { loss }] of results!.entries()) {
          const { adapter } = batch.sequences[i]!;
          sums[adapter]! += loss * segments.find((segment) => segment.adapter === adapter)!.weight;
        }
      }
      if (action.kind === "step") {
        const stepping = action.steps.map(({ adapter }) => adapter);
        const squares = await Promise.all(stages.map((stage) => stage.pool.gradSquares(stepping)));
        for (const [at, slot] of stepping.entries()) {
          if (!needsSum(bus, spec, adapters[slot]!)) continue;
          const own = squares.map((of) => of[at]!);
          for (const [stage, of] of (await sumShared(bus, slot, own)).entries()) (squares[stage] as Float32Array[])[at] = of;
        }
        const steps = action.steps.map(({ adapter, step }, at) => {
          losses[adapter]!.push(sums[adapter]!);
          sums[adapter] = 0;
          const { ratio, maxGradNorm } = crowd[adapter]!;
          const learningRate = lost.includes(who[adapter]!) ? 1e30 : crowd[adapter]!.learningRate;
          const coefficient = clipCoefficient(gradNormOf(squares.map((of) => of[at]!)), maxGradNorm);
          const betas = { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
          return { adapter, t: step + 1, learningRate, ratio, ...betas, weightDecay: 0.01, coefficient };
        });
        for (const stage of stages) stage.step(steps);
      }
    }
    const trained = new Map<number, Trained>();
    for (const [adapter, i] of who.entries()) {
      const factors = (await Promise.all(stages.map((stage) => readAdapter(stage, adapter)))).flat();
      trained.set(i, { losses: losses[adapter]!, factors });
    }
    return trained;
  } finally {
    for (const stage of stages) stage[Symbol.dispose]();
  }
}

/** With one value for rows that serve both tables. */
export function sharedAlike(
  factors: readonly FactorTensor[],
  spec: ModelSpec,
  { tables }: PoolAdapter,
): readonly FactorTensor[] {
  if (!sharesRows(spec, tables)) return factors;
  const values = (at: FactorTensor) => at.values.map((_, i) => 0.3 * Math.sin(i));
  return factors.map((at) => (at.factor === "rows" ? { ...at, values: values(at) } : at));
}

export function expectSame(got: Trained, want: Trained): void {
  expect(got.losses).toEqual(want.losses);
  expect(got.losses.length).toBe(STEPS);
  expect(got.factors.length).toBe(want.factors.length);
  for (const [i, { values, ...at }] of got.factors.entries()) {
    const { layer, linear, factor } = want.factors[i]!;
    expect<object>(at).toEqual({ layer, linear, factor });
    expect(sameBits(values, want.factors[i]!.values), `${at.layer}.${at.linear}.${at.factor}`).toBe(true);
  }
}

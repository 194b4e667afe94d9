// Passes so large that their tensors have more than 2^31 elements: 131,072 rows of the widths of Llama 3 8B, whose gate and up
// have 3.8 billion. Many adapters' rows, against each alone in a pass that is 32 times smaller; and one row of as many tokens.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { SequenceLoss } from "../../src/bus/messages.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { StageSizes } from "../../src/engine/layers/buffers.ts";
import { Stage } from "../../src/engine/stage.ts";
import { weightsOf } from "../../src/engine/weights/weight-source.ts";
import { sameBits } from "../../src/files/convert.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { pack, type Tokens } from "../../src/schedule/pack.ts";
import { writeAdapter } from "../helpers/factors.ts";
import { needs } from "../helpers/needs.ts";
import { LINEARS, randomFactors, tinySizes, wholeModel } from "../helpers/tiny.ts";

const ROWS = 131_072;
const ADAPTERS = 32;
const [LENGTH, EACH] = [512, ROWS / ADAPTERS];

/** The first layers of Llama 3 8B, with a smaller vocabulary. */
function layersOf(layers: number): ModelSpec {
  const spec = shapeOf("llama3-8b");
  const first = <T>(of: readonly T[]) => of.slice(0, layers);
  const perLayer = { windows: first(spec.windows), layerRopes: first(spec.layerRopes), kvSources: first(spec.kvSources) };
  return { ...spec, ...perLayer, layers, vocab: 4096, maxPositions: ROWS };
}

const adapterOf = (i: number): PoolAdapter => ({
  rank: [16, 3, 40, 8][i % 4]!,
  scale: 0.005 * (1 + (i % 8)),
  targets: LINEARS,
});

function tokensOf(spec: ModelSpec, i: number, length: number): Tokens {
  const rng = new Rng(i, 77);
  const ids = Int32Array.from({ length: length + 1 }, () => rng.below(spec.vocab));
  return { ids, mask: new Uint8Array(length + 1).fill(1) };
}

const segmentOf = (spec: ModelSpec, i: number, slot: number, lengths: readonly number[]) => ({
  ...{ adapter: slot, seed: 40 + i, step: 3, dropout: i % 3 === 0 ? 0.1 : 0, firstRow: 0, weight: 1 / sum(lengths) },
  samples: lengths.map((length, row) => tokensOf(spec, 1000 * i + row, length)),
});

/** Losses and gradients of `who` in one pass; `read` says whose gradients. */
async function pass(
  spec: ModelSpec,
  who: readonly number[],
  lengths: readonly number[],
  read: readonly number[],
  changes: Partial<StageSizes>,
) {
  const device = new CudaDevice("bf16");
  const adapters = who.map(adapterOf);
  const rows = who.length * sum(lengths);
  const sizes = tinySizes(device, spec, adapters, {
    ...{ rows, targets: rows, layers: spec.layers, chunk: 1024, positions: Math.max(...lengths), ...changes },
  });
  using weights = weightsOf({ randomSeed: 1 }, spec, device);
  const config = { spec, layerRange: wholeModel(spec), sizes };
  using stage = await Stage.open(device, config, weights.fill, { previous: null, next: null });
  for (const [slot, i] of who.entries()) await stage.admit(slot, { ...adapterOf(i), seed: i, init: "default" });
  for (const i of read) await writeAdapter(stage, who.indexOf(i), await randomFactors(stage, who.indexOf(i), i));
  const batch = pack(
    who.map((i, slot) => segmentOf(spec, i, slot, lengths)),
    who.length,
    device.rowTile,
  );
  await stage.forward(0, batch);
  const losses = (await stage.backward(0, true))!;
  const gradients = new Map<number, Float32Array>();
  for (const i of read) gradients.set(i, await stage.pool.read(who.indexOf(i), "grads"));
  return { losses, gradients };
}

const logProbs = (losses: readonly SequenceLoss[]) => losses.flatMap((of) => [...(of.logProbs ?? [])]);

needs("gpu")("passes of more than 2^31 elements", () => {
  test.each(["selective", "offload"] as const)(
    "adapters come out as alone, recomputation %s",
    async (recomputation) => {
      const spec = layersOf(1);
      const lengths = range(EACH / LENGTH).map(() => LENGTH);
      const read = [0, 1, 17, ADAPTERS - 2, ADAPTERS - 1];
      const all = await pass(spec, range(ADAPTERS), lengths, read, { recomputation, hostInputs: 1 });
      for (const i of read) {
        const alone = await pass(spec, [i], lengths, [i], { recomputation, hostInputs: 1 });
        const own = all.losses.slice(i * lengths.length, (i + 1) * lengths.length);
        expect(alone.losses.map(({ loss }) => loss)).toEqual(own.map(({ loss }) => loss));
        expect(logProbs(alone.losses).length).toBe(EACH);
        expect(logProbs(alone.losses)).toEqual(logProbs(own));
        const gradient = alone.gradients.get(i)!;
        expect(gradient.some((value) => value !== 0)).toBe(true);
        expect(sameBits(gradient, all.gradients.get(i)!), `the gradient of adapter ${i}`).toBe(true);
      }
    },
    240_000,
  );

  test("one row of 131,072 tokens comes to the same bits however it is kept, and begins as a shorter one does", async () => {
    const spec = layersOf(2);
    const full = await pass(spec, [0], [ROWS], [0], { recomputation: "full" });
    const offloaded = await pass(spec, [0], [ROWS], [0], { recomputation: "offload", hostInputs: 2 });
    expect(logProbs(full.losses).every(Number.isFinite)).toBe(true);
    expect(logProbs(offloaded.losses)).toEqual(logProbs(full.losses));
    expect(sameBits(offloaded.gradients.get(0)!, full.gradients.get(0)!)).toBe(true);
    const start = await pass(spec, [0], [EACH], [0], { recomputation: "selective" });
    expect(logProbs(start.losses)).toEqual(logProbs(full.losses).slice(0, EACH));
  }, 240_000);
});

// With inputs alone kept, the last layer of a stage, or its last half, is not computed again where nothing ran since its
// forward pass: the same bits as where it is.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import type { StageSizes } from "../../src/engine/layers/buffers.ts";
import { pack } from "../../src/schedule/pack.ts";
import { adapterOn, LINEARS, randomTokens, tinyStage } from "./tiny.ts";

const ADAPTERS = [
  { rank: 2, scale: 1, targets: LINEARS },
  { rank: 5, scale: 2, targets: ["q_proj", "o_proj", "up_proj", "down_proj"], method: "dora" },
] as const;

/** A GPU's has one of kernels and one of their variants. */
type Launching = Device & { launch: (kernel: never, ...args: never[]) => void };
type Pass = readonly [what: "forward" | "backward" | "evaluate", batch: number];
const ALONE: readonly Pass[] = [0, 1].flatMap((i): Pass[] => [
  ["forward", i],
  ["backward", i],
]);
const EVALUATING = [0, 1].flatMap((i): Pass[] => [
  ["forward", i],
  ["evaluate", 1 - i],
  ["backward", i],
]);
const IN_FLIGHT = (["forward", "backward"] as const).flatMap((what) => [0, 1].map((i): Pass => [what, i]));

/** Losses and gradients of these passes, in this order, and how many products by frozen weights were made. */
async function run(device: Launching, spec: ModelSpec, order: readonly Pass[], sizes: Partial<StageSizes>) {
  let products = 0;
  const launch = device.launch.bind(device);
  device.launch = (kernel: { readonly name?: string }, ...args: never[]) => {
    if (kernel.name === "linear_forward") products++;
    launch(kernel as never, ...args);
  };
  const adapters = ADAPTERS.map((of) => adapterOn(spec, of));
  using stage = await tinyStage(device, spec, adapters, [4, 5], { inFlight: 2, hostInputs: 1, ...sizes });
  const batchOf = (i: number) => {
    const rng = new Rng(i, 8);
    const segment = (adapter: number, lengths: readonly number[]) => ({
      ...{ adapter, seed: 3 + adapter, step: i, dropout: 0.1 * adapter, firstRow: 0, weight: 0.1 },
      samples: lengths.map((length) => randomTokens(rng, spec.vocab, length)),
    });
    const segments = i === 0 ? [segment(0, [9, 14]), segment(1, [30])] : [segment(1, [5, 21]), segment(0, [3])];
    return pack(segments, ADAPTERS.length, device.rowTile);
  };
  const losses = new Map<number, unknown>();
  for (const [what, i] of order) {
    if (what === "forward") await stage.forward(i, batchOf(i));
    else if (what === "evaluate") await stage.evaluate(batchOf(i));
    else losses.set(i, await stage.backward(i, true));
  }
  const gradients: Float32Array[] = [];
  for (const adapter of range(ADAPTERS.length)) gradients.push(await stage.pool.read(adapter, "grads"));
  return { found: [losses.get(0), losses.get(1), ...gradients], gradients, products };
}

export function keepsLastLayer(name: string, open: () => Launching, spec: ModelSpec, sizes: Partial<StageSizes> = {}): void {
  test.each(["full", "offload"] as const)(`${name}, recomputation %s`, async (recomputation) => {
    const of = (order: readonly Pass[], more: Partial<StageSizes> = {}) =>
      run(open(), spec, order, { ...sizes, recomputation, ...more });
    const there = await of(ALONE);
    expect(there.gradients.every((of) => of.some((value) => value !== 0))).toBe(true);
    const [evaluating, inFlight, kept] = [
      await of(EVALUATING),
      await of(IN_FLIGHT),
      await of(ALONE, { recomputation: "none" }),
    ];
    expect(evaluating.found).toEqual(there.found);
    expect(inFlight.found).toEqual(there.found);
    expect(kept.found).toEqual(there.found);
    expect(inFlight.products).toBeGreaterThan(there.products);
    expect(there.products).toBeGreaterThan(kept.products);
  });
}

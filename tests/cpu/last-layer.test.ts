// With inputs alone kept, the last layer of a stage, or its last half, is not computed again where nothing ran since its forward
// pass: the same bits as where it is.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { pack } from "../../src/schedule/pack.ts";
import { LINEARS, randomTokens, tinySpec, tinyStage } from "../helpers/tiny.ts";

const ADAPTERS = [
  { rank: 2, scale: 1, targets: LINEARS },
  { rank: 5, scale: 2, targets: ["q_proj", "o_proj", "up_proj", "down_proj"], method: "dora" },
] as const;

type Pass = "forward" | "backward" | "evaluate";

/** Losses and gradients of these passes, in this order, and how many products by frozen weights were made. */
async function run(order: readonly (readonly [Pass, number])[], sizes: { readonly recomputation: "full" | "offload" }) {
  const spec = tinySpec();
  const device = new CpuDevice(2);
  let products = 0;
  const launch = device.launch.bind(device);
  device.launch = (kernel, args) => {
    if (kernel.name === "linear_forward") products++;
    launch(kernel, args);
  };
  using stage = await tinyStage(device, spec, ADAPTERS, [4, 5], { inFlight: 2, hostInputs: 1, ...sizes });
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
  return { losses: [losses.get(0), losses.get(1)], gradients, products };
}

test.each(["full", "offload"] as const)("recomputation %s", async (recomputation) => {
  const there = await run(
    [
      ["forward", 0],
      ["backward", 0],
      ["forward", 1],
      ["backward", 1],
    ],
    { recomputation },
  );
  expect(there.gradients.every((of) => of.some((value) => value !== 0))).toBe(true);
  const others: readonly (readonly [Pass, number])[][] = [
    [
      ["forward", 0],
      ["evaluate", 1],
      ["backward", 0],
      ["forward", 1],
      ["evaluate", 0],
      ["backward", 1],
    ],
    [
      ["forward", 0],
      ["forward", 1],
      ["backward", 0],
      ["backward", 1],
    ],
  ];
  const [evaluating, inFlight] = [await run(others[0]!, { recomputation }), await run(others[1]!, { recomputation })];
  for (const { losses, gradients } of [evaluating, inFlight])
    expect([losses, gradients]).toEqual([there.losses, there.gradients]);
  expect(inFlight.products).toBeGreaterThan(there.products);
});

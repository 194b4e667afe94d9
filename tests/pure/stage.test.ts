// A whole step on the null device: memory as planned, no allocation while training, nothing left at the end.

import { describe, expect, test } from "bun:test";
import { RunError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { NullDevice } from "../../src/device/null.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { Link } from "../../src/link/link.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { placed } from "../../src/methods/placement.ts";
import { pack } from "../../src/schedule/pack.ts";
import {
  adapterOn,
  LINEARS,
  plannedBytes,
  randomFill,
  randomTokens,
  sparseFamilies,
  tinyFamilies,
  tinySizes,
  tinySpec,
  wholeModel,
} from "../helpers/tiny.ts";

const adapters = [
  { rank: 5, scale: 1, targets: LINEARS, seed: 1 },
  { rank: 20, scale: 2, targets: ["q_proj", "down_proj"], seed: 2 },
] as const;

const batchOf = (device: NullDevice, vocab: number) => {
  const rng = new Rng(4);
  const segments = adapters.map((_, adapter) => ({
    adapter,
    samples: [randomTokens(rng, vocab, 9), randomTokens(rng, vocab, 21)],
    seed: 1,
    step: 0,
    dropout: 0.1,
    firstRow: 0,
    weight: 0.1,
  }));
  return pack(segments, adapters.length, device.rowTile);
};

async function admitAll(stage: Stage, crowd: readonly PoolAdapter[] = adapters): Promise<void> {
  for (const [slot, adapter] of crowd.entries()) await stage.admit(slot, { ...adapter, seed: 0, init: "default" });
}

const crowds = { "": adapters, ", one with magnitudes": [adapters[0], { ...adapters[1], method: "dora" }] } as const;

for (const [family, spec] of Object.entries({ ...tinyFamilies, ...sparseFamilies }))
  for (const compute of ["f32", "bf16"] as const)
    for (const recomputation of ["none", "selective", "full", "offload"] as const)
      describe(`${family}, ${compute}, recomputation ${recomputation}`, () => {
        for (const [which, crowd] of Object.entries(crowds))
          test(`takes what the plan says, with an allocation an adapter, and gives it back${which}`, async () => {
            const device = new NullDevice(compute);
            const own = crowd.map((adapter) => adapterOn(spec, adapter));
            const sizes = tinySizes(device, spec, own, { recomputation, hostInputs: 1, layers: spec.layers });
            const config = { spec, layerRange: wholeModel(spec), sizes };
            {
              using stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
              const opened = device.allocations;
              await admitAll(stage, own);
              const planned = plannedBytes(device, spec, sizes, own);
              expect(Math.abs(device.allocated - planned) / planned).toBeLessThan(0.01);
              const { allocations } = device;
              expect(allocations).toBe(opened + crowd.length);
              await stage.forward(0, batchOf(device, spec.vocab));
              await stage.backward(0);
              const step = {
                learningRate: 1e-3,
                ratio: 1,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weightDecay: 0,
                coefficient: 1,
              };
              await stage.step([{ adapter: 1, t: 1, ...step }]);
              await stage.evaluate(batchOf(device, spec.vocab));
              expect(device.allocations).toBe(allocations);
            }
            expect(device.live.size).toBe(0);
          });
      });

test("a frozen weight is multiplied once for all adapters, forward and backward", async () => {
  const device = new NullDevice();
  const spec = tinyFamilies["llama"]!;
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers });
  using stage = await Stage.open(device, { spec, layerRange: wholeModel(spec), sizes }, randomFill(device, 1), {
    previous: null,
    next: null,
  });
  await admitAll(stage);
  await stage.forward(0, batchOf(device, spec.vocab));
  await stage.backward(0);
  const times = (kernel: string) => device.launched.filter((name) => name === kernel).length;
  const chunks = times("xent");
  expect(times("linear_forward")).toBe(4 * spec.layers + chunks);
  expect(times("linear_backward")).toBe(4 * spec.layers - 1 + chunks); // the embedding needs no gradient
  expect(times("lora_down")).toBe(4 * spec.layers);
});

test("a backward pass ends with the first layer in which an adapter of the pass acts", async () => {
  const spec = tinySpec({ layers: 5 });
  const from = (first: number): PoolAdapter =>
    placed(spec.layers, (layer) => (layer < first ? null : { rank: 4, scale: 1 })) satisfies PoolAdapter;
  const products = async (crowd: readonly PoolAdapter[]) => {
    const device = new NullDevice();
    const sizes = tinySizes(device, spec, crowd, { layers: spec.layers });
    using stage = await Stage.open(device, { spec, layerRange: wholeModel(spec), sizes }, randomFill(device, 1), {
      previous: null,
      next: null,
    });
    await admitAll(stage, crowd);
    await stage.forward(0, batchOf(device, spec.vocab));
    await stage.backward(0);
    const times = (kernel: string) => device.launched.filter((name) => name === kernel).length;
    return times("linear_backward") - times("xent");
  };
  expect(await products([from(0), from(3)])).toBe(4 * 5 - 1); // the embedding needs no gradient
  expect(await products([from(4), from(3)])).toBe(4 * 2);
  const tokens: PoolAdapter = { ...from(3), tables: { embedding: { tokens: [5] }, head: { tokens: [5] } } };
  expect(await products([from(4), tokens])).toBe(4 * 5);
});

test("a stage refuses a backward pass without its forward", async () => {
  const device = new NullDevice();
  const spec = tinyFamilies["llama"]!;
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers });
  using stage = await Stage.open(device, { spec, layerRange: wholeModel(spec), sizes }, randomFill(device, 1), {
    previous: null,
    next: null,
  });
  expect(stage.backward(3)).rejects.toThrow("pass 3");
});

test("passes that follow one that failed fail with the same error, however many had been sent", async () => {
  const device = new NullDevice();
  const spec = tinyFamilies["llama"]!;
  const sizes = tinySizes(device, spec, adapters, { layers: 1, inFlight: 2 });
  const lost = new RunError("link.lost", "stage 0 is gone");
  const refuse = () => Promise.reject(lost);
  const previous: Link = { kind: "shm", send: refuse, receive: refuse, [Symbol.dispose]: () => undefined };
  const layerRange = { from: 1, to: 2, first: false, last: true };
  using stage = await Stage.open(device, { spec, layerRange, sizes }, randomFill(device, 1), { previous, next: null });
  await admitAll(stage);
  const { forward, backward, evaluate } = stage.handlers();
  const batch = batchOf(device, spec.vocab);
  const sent = [
    ...range(4).map(() => () => evaluate({ type: "evaluate", batch })),
    ...range(4).flatMap((pass) => [
      () => forward({ type: "forward", pass, batch }),
      () => backward({ type: "backward", pass }),
    ]),
  ];
  for (const pass of sent) await expect(pass()).rejects.toBe(lost);
});

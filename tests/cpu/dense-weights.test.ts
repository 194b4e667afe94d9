// Weights that are taken apart early (device/cuda/dense-weights.ts), over a driver whose streams are late at random: each
// product reads its own weight, whatever was made during the one before.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { DenseWeights, type Making } from "../../src/device/cuda/dense-weights.ts";
import { SideStream } from "../../src/device/cuda/streams.ts";
import { hostBytes } from "../../src/device/shared.ts";
import { World } from "../helpers/fake-cuda.ts";

type Weight = { readonly ptr: number; readonly size: number };
type Call = { readonly weight: number; readonly direction: "forward" | "backward" };
/** A product, a use of a weight without one, or what a recording begins and ends with, after which buffers hold anything. */
type Step = Call | number | "settle";

/** Products over some of the weights, or uses of them without a product; throws where one read another weight's bytes. */
function multiply(seed: number, sizes: readonly number[], buffers: readonly number[], calls: readonly Step[]) {
  using world = new World(seed);
  const driver = world.driver(1);
  const main = world.stream();
  using side = new SideStream(driver, main, "last");
  const rng = new Rng(seed);
  const weights = sizes.map((size): Weight => {
    const ptr = world.allocate(size);
    hostBytes(ptr, size).set(Uint8Array.from({ length: size }, () => rng.below(256)));
    return { ptr, size };
  });
  let launching = main;
  const made = { main: 0, aside: 0 };
  const making: Making<Weight> = {
    bytes: ({ size }) => size,
    make: ({ ptr, size }, to) => {
      made[launching === main ? "main" : "aside"]++;
      driver.cuMemcpyDtoDAsync_v2(to, ptr, size, launching);
    },
  };
  const room = buffers.map((bytes) => ({ ptr: world.allocate(bytes), bytes }));
  const noise = world.allocate(Math.max(...buffers));
  const dense = new DenseWeights(room, side, (stream, work) => {
    launching = stream;
    work();
    launching = main;
  });
  const read: { readonly out: number; readonly weight: Weight }[] = [];
  const reads = (weight: Weight) => (from: number) => {
    const out = world.allocate(weight.size);
    read.push({ out, weight });
    driver.cuMemcpyDtoDAsync_v2(out, from, weight.size, main);
  };
  let fitted = true;
  for (const call of calls) {
    world.async(rng.below(12));
    if (call === "settle") {
      dense.settle();
      for (const { ptr, bytes } of room) driver.cuMemcpyDtoDAsync_v2(ptr, noise, bytes, main);
    } else if (typeof call === "number") reads(weights[call]!)(dense.at(weights[call]!, making)!);
    else {
      const weight = weights[call.weight]!;
      if (!dense.over(weight, call.direction, making, reads(weight))) fitted = false;
    }
  }
  driver.cuStreamSynchronize(main);
  side.synchronise();
  for (const { out, weight } of read)
    if (!Buffer.from(hostBytes(out, weight.size)).equals(hostBytes(weight.ptr, weight.size)))
      throw new Error(`seed ${seed}: a product over other bytes than its weight's`);
  return { made, products: read.length, fitted };
}

const pass = (weights: number): readonly Call[] => {
  const forward = Array.from({ length: weights }, (_, weight) => ({ weight, direction: "forward" as const }));
  return [...forward, ...forward.map(({ weight }) => ({ weight, direction: "backward" as const })).reverse()];
};
/** Of four groups in each of three layers: one is the largest, and the smaller of any two that follow each other fits 64. */
const LAYER = [96, 32, 160, 64];
const SIZES = [...LAYER, ...LAYER, ...LAYER];

describe("packed weights that are taken apart early", () => {
  test("from the second pass on every weight is made during the product before it, where it is not there already", () => {
    for (let seed = 0; seed < 20; seed++) {
      const passes = 4;
      const { made, products } = multiply(seed, SIZES, [160, 64], Array.from({ length: passes }, () => pass(12)).flat());
      expect(products).toBe(passes * 24);
      // The last two weights of the forward pass are there for the backward pass, and its last two for the next forward pass.
      // The first pass learns what follows.
      expect(made).toEqual({ main: 12 + 10, aside: (passes - 1) * (10 + 10) });
    }
  });

  test("each product reads its own weight, whatever comes in which order", () => {
    for (let seed = 0; seed < 150; seed++) {
      const rng = new Rng(1000 + seed);
      const sizes = Array.from({ length: 2 + rng.below(8) }, () => 16 + rng.below(200));
      const most = Math.max(...sizes);
      const buffers = [most, ...(rng.below(4) === 0 ? [] : [1 + rng.below(most)])];
      const calls = Array.from({ length: 6 }, () => pass(sizes.length))
        .flat()
        .flatMap((call): readonly Step[] => {
          if (rng.below(10) > 0) return [call];
          const other = rng.below(sizes.length);
          const instead: readonly (readonly Step[])[] = [
            ["settle", call],
            [call, "settle"],
            [],
            [other],
            [{ ...call, weight: other }, call],
            [call, call],
          ];
          return instead[rng.below(instead.length)]!;
        });
      expect(multiply(seed, sizes, buffers, calls).fitted).toBe(true);
    }
  });

  test("a weight that fits no buffer is not multiplied here", () => {
    expect(multiply(1, [64, 32], [32], pass(2))).toMatchObject({ fitted: false, products: 2 });
  });
});

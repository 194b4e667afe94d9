// How evenly an adapter's tokens go to experts: counted for each adapter, whatever else is in the pass.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import type { Later } from "../../src/bus/bus.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Load } from "../../src/engine/expert-load.ts";
import { SHAPES } from "../../src/plan/shapes.ts";
import { pack } from "../../src/schedule/pack.ts";
import { benchmark } from "../../src/session/benchmark/benchmark.ts";
import { LateDevice } from "../helpers/late.ts";
import { inExperts, randomTokens, sparseFamilies, tinySpec, tinyStage } from "../helpers/tiny.ts";

const spec = sparseFamilies["qwen3moe"]!;
const LENGTHS = [23, 9, 30];
/** Two of its layers have experts, three of which a token passes. */
const ROUTED = 2 * 3;

async function loadsOf(who: readonly number[], recomputation: "none" | "full", device: CpuDevice = new CpuDevice(2)) {
  const adapters = who.map((i) => inExperts(spec)[i]!);
  using stage = await tinyStage(
    device,
    spec,
    adapters,
    who.map((i) => 5 + i),
    { recomputation },
  );
  const segments = who.map((i, adapter) => {
    const samples = [randomTokens(new Rng(i), spec.vocab, LENGTHS[i]! + 1)];
    return { adapter, samples, seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 };
  });
  const batch = pack(segments, adapters.length, stage.device.rowTile);
  const { forward, backward, loads } = stage.handlers();
  for (const pass of [0, 1]) {
    await forward({ type: "forward", pass, batch }); // enqueued: a device that is late has not computed it
    await backward({ type: "backward", pass });
  }
  const slots = { type: "loads", adapters: who.map((_, slot) => slot) } as const;
  const ask = async () => await ((await loads(slots)) as Later<readonly Load[]>).reply;
  return { first: await ask(), again: await ask() };
}

test("the rows of the busiest experts and of all are an adapter's own, and counted anew after they are asked for", async () => {
  const { first, again } = await loadsOf([0, 1, 2], "full");
  expect(first.map(({ all }) => all)).toEqual(LENGTHS.map((length) => 2 * ROUTED * length));
  for (const { busiest, all } of first) {
    expect(busiest).toBeGreaterThanOrEqual(all / 8);
    expect(busiest).toBeLessThan(all / 2);
  }
  expect(again.map(({ all }) => all)).toEqual([0, 0, 0]);
  expect((await loadsOf([1], "none")).first).toEqual([first[1]!]);
});

test("they are counted while the device computes what comes next, as well", async () => {
  const late = new LateDevice(7);
  expect(await loadsOf([0, 1, 2], "none", late)).toEqual(await loadsOf([0, 1, 2], "none"));
  expect(late.readings).toBeGreaterThan(1);
});

test("a benchmark reports the share of the busiest expert, and none without experts", async () => {
  const work = { device: "cpu", rows: 1, length: 16, rank: 2, steps: 1, adapters: 2 } as const;
  const shapes = SHAPES as Record<string, (typeof SHAPES)[string]>;
  try {
    Object.assign(shapes, { sparse: spec, dense: tinySpec({}) });
    const { busiest_expert: share } = await benchmark({ ...work, shape: "sparse", experts: "per-expert" });
    expect(share).toBeGreaterThanOrEqual(1 / 8);
    expect(share).toBeLessThanOrEqual(1 / 3);
    expect((await benchmark({ ...work, shape: "dense" })).busiest_expert).toBeNull();
  } finally {
    for (const name of ["sparse", "dense"]) delete shapes[name];
  }
});

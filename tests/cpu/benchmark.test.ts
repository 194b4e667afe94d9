// What `mlora bench` measures, beyond the numbers of its kernels.

import { describe, expect, test } from "bun:test";
import { EnergyMeter } from "../../src/engine/probe.ts";
import { SHAPES } from "../../src/plan/shapes.ts";
import { benchmark } from "../../src/session/benchmark/benchmark.ts";
import { needs } from "../helpers/needs.ts";
import { tinySpec } from "../helpers/tiny.ts";

const work = { device: "cpu", rank: 2, adapters: 2, rows: 1, shape: "tiny" } as const;

async function withShape<T>(spec: ReturnType<typeof tinySpec>, run: () => Promise<T>): Promise<T> {
  const shapes = SHAPES as Record<string, (typeof SHAPES)[string]>;
  try {
    shapes["tiny"] = spec;
    return await run();
  } finally {
    delete shapes["tiny"];
  }
}

describe("a benchmark", () => {
  test("lasts as long as it was asked to, and counts all of its steps", async () => {
    await withShape(tinySpec({}), async () => {
      const { steps, mean_ms: mean, losses } = await benchmark({ ...work, length: 16, steps: 2, seconds: 1 });
      expect(steps).toBeGreaterThanOrEqual(2);
      expect(steps * mean).toBeGreaterThanOrEqual(0.99 * 1000); // the mean is rounded
      expect(losses.every(Number.isFinite)).toBeTrue();
    });
  });

  test("makes no fewer steps than it was asked to, however soon its seconds are over", async () => {
    await withShape(tinySpec({}), async () => {
      const long = await benchmark({ ...work, length: 16, steps: 40 });
      expect(long.steps).toBe(40);
    });
  });

  test("has rows longer than the shape's own positions", async () => {
    await withShape(tinySpec({ maxPositions: 32 }), async () => {
      const { length, losses } = await benchmark({ ...work, length: 75, steps: 1 });
      expect(length).toBe(75);
      expect(losses.every(Number.isFinite)).toBeTrue();
    });
  });

  test("says of a processor that nothing tells what it draws", async () => {
    await withShape(tinySpec({}), async () => {
      const { watts, mhz, joules_per_1000_tokens: joules } = await benchmark({ ...work, length: 8, steps: 1 });
      expect({ watts, mhz, joules }).toEqual({ watts: null, mhz: null, joules: null });
    });
  });
});

test("where no GPU can say what it draws, there is no meter", () => {
  expect(EnergyMeter.open([9999])).toBeNull();
});

needs("gpu")("the energy of a GPU", () => {
  test("grows, by no more than any GPU can draw", async () => {
    using meter = EnergyMeter.open([0])!;
    const [from, since] = [meter.read(), performance.now()];
    let to = meter.read();
    while (to.joules === from.joules) {
      await Bun.sleep(1);
      to = meter.read();
    }
    expect(to.joules).toBeGreaterThan(from.joules);
    expect(to.joules - from.joules).toBeLessThan(2000 * (1 + (performance.now() - since) / 1000));
    expect(to.mhz).toBeGreaterThan(0);
  });
});

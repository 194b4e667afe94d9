// What a plan counts for mixes of ranks, targets, methods and objectives: the sum of what each adapter takes, which is what
// the stage takes.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { Stage } from "../../src/engine/stage.ts";
import { linearsIn } from "../../src/families/linears.ts";
import { type DataSummary, gradientsOnStages, makePlan, type Plan, type StageDevice, totalBytes } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { GradientRoom } from "../../src/schedule/gradients.ts";
import { pack } from "../../src/schedule/pack.ts";
import { randomFill, randomTokens, tinyFamilies } from "../helpers/tiny.ts";

const ROOM = { totalBytes: 2 ** 40, freeBytes: 2 ** 40 };
const cpu: StageDevice = { ...chooseDevice("cpu", "fp32"), ...ROOM, host: "" };
const cuda: StageDevice = { ...cpu, kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0 };

/** Keys of an adapter in a recipe, as TOML. */
type Keys = Readonly<Record<string, string | number>>;
const recipeOf = (adapters: readonly Keys[]) =>
  parseRecipe(
    [
      '[model]\npath = "m"\n[run]\noutput = "out"',
      ...adapters.map((keys, i) => {
        const lines = Object.entries({ name: `"a${i}"`, data: '"d.jsonl"', steps: 1, batch_size: 2, ...keys });
        return `[[adapter]]\n${lines.map(([key, value]) => `${key} = ${value}`).join("\n")}`;
      }),
    ].join("\n"),
    "mix.toml",
  );

const summary = (length: number): DataSummary => ({
  train: range(4).map(() => ({ length, longest: length, targets: length })),
  eval: [],
});

/** Rows of 2 x 20 tokens where an adapter learns from pairs. */
const planOf = (adapters: readonly Keys[], device: StageDevice, spec = shapeOf("smollm2-135m")): Plan =>
  makePlan(
    recipeOf(adapters),
    spec,
    adapters.map(({ objective }) => summary(objective === undefined ? 20 : 40)),
    [device],
  );

const QV = '["q_proj", "v_proj"]';
const EIGHT: readonly Keys[] = range(8).map(() => ({ rank: 8 }));
const MIXES: Readonly<Record<string, readonly Keys[]>> = {
  ranks: [...EIGHT, { rank: 256 }],
  targets: [...EIGHT.map((keys) => ({ ...keys, targets: QV })), { rank: 64, targets: '"all-linear"' }],
  optimizers: [{ rank: 64 }, { rank: 64, optimizer: '"adamw-8bit"' }, { rank: 8, optimizer: '"sgd"' }],
  methods: [{ rank: 16 }, { rank: 16, method: '"dora"' }, { rank: 256, method: '"vera"' }, { rank: 8, targets: QV }],
};

test.each(Object.keys(MIXES))("adapters of different %s take what each takes alone", (mix) => {
  for (const device of [cpu, cuda]) {
    const together = planOf(MIXES[mix]!, device).stages[0]!.memory.adapters;
    const apart = sum(MIXES[mix]!.map((keys) => planOf([keys], device).stages[0]!.memory.adapters));
    expect(together / apart).toBeLessThan(1.05);
    expect(together / apart).toBeGreaterThan(0.95);
  }
});

test("a VeRA takes a small part of what a LoRA of its rank takes: its vectors, and the factors of one group", () => {
  for (const device of [cpu, cuda]) {
    const [vera, lora] = [{ method: '"vera"' }, {}].map(
      (keys) => planOf([{ rank: 256, ...keys }], device).stages[0]!.memory.adapters,
    );
    expect(vera! / lora!).toBeLessThan(0.05);
  }
});

const OBJECTIVES = ["dpo", "cpo", "orpo", "simpo"];

function randomKeys(rng: Rng, spec: ModelSpec): Keys {
  const method = ["lora", "dora", "vera"][rng.below(3)]!;
  const chosen = linearsIn(spec).filter(() => rng.below(2) === 0);
  return {
    rank: 1 + rng.below(rng.below(3) === 0 ? 256 : 32),
    method: `"${method}"`,
    ...(rng.below(3) > 0 && chosen.length > 0
      ? { targets: JSON.stringify(chosen) }
      : method === "lora" && rng.below(2) === 0
        ? { rank_pattern: '{ "0[.].*" = 5 }', layers: "[0]" }
        : {}),
    ...(rng.below(3) === 0 ? { objective: `"${OBJECTIVES[rng.below(OBJECTIVES.length)]}"` } : {}),
  };
}

test("30 mixes at random: the stage takes what the plan says, and trains in it", async () => {
  const families = Object.values(tinyFamilies);
  for (let mix = 0; mix < 30; mix++) {
    const rng = new Rng(mix, 5);
    const spec = families[mix % families.length]!;
    const adapters = range(1 + rng.below(9)).map(() => randomKeys(rng, spec));
    const plan = planOf(adapters, cpu, spec);
    const { layerRange, sizes, memory } = plan.stages[0]!;
    const device = new CpuDevice(2);
    using stage = await Stage.open(device, { spec, layerRange, sizes }, randomFill(device, 1), { previous: null, next: null });
    for (const [slot, { rank, scale, targets, places, method = "lora" }] of plan.adapters.entries()) {
      const adapter = { rank, scale, targets, method, seed: slot, ...(places ? { places } : {}) };
      await stage.admit(slot, { ...adapter, init: "default" });
    }
    expect(device.allocated, JSON.stringify(adapters)).toBe(totalBytes(memory));
    const rows = Math.floor(sizes.rows / device.rowTile);
    const { fits, add } = new GradientRoom({
      buffers: [sizes.gradients],
      needed: (adapter) => gradientsOnStages(plan, plan.adapters[adapter]!),
    }).selection();
    const together = range(plan.adapters.length).filter((adapter) => {
      const has = fits(adapter);
      if (has) add(adapter);
      return has;
    });
    const segments = together.slice(0, rows).map((adapter) => ({
      ...{ adapter, samples: [randomTokens(rng, spec.vocab, 9)], seed: 1, step: 0, dropout: 0.1, firstRow: 0, weight: 0.1 },
    }));
    const batch = pack(segments, sizes.slots, device.rowTile);
    await stage.forward(0, batch);
    await stage.backward(0);
    expect(device.allocated).toBe(totalBytes(memory));
  }
});

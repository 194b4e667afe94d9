// More adapters than fit on the devices: those that wait for their turn are in host memory, and every one comes out, bit for
// bit, as where all have room.

import { afterAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { maxOf, range, sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import type { StageRequest } from "../../src/bus/messages.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { bytesOnStages, makePlan } from "../../src/plan/plan.ts";
import { shapeOf } from "../../src/plan/shapes.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import { recipeOf } from "../../src/session/benchmark/work.ts";
import { memoryStore } from "../../src/session/state/checkpoints.ts";
import { run } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";
import { beforeItsEnd, inTheMiddle } from "../helpers/middle.ts";
import { leftOf, longer, metrics, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const ADAPTERS = range(7);
/** Seven of which one is a VeRA, one ends early and one cannot be trained. */
const seven = (more: string) =>
  unlike(ADAPTERS, "cpu", more)
    .replace(/rank = 1\ninit = "default"\nmethod = "lora"\nlora_plus_ratio = 1\n/, 'rank = 24\nmethod = "vera"\n')
    .replace(/name = "a4"/, "$&\npatience = 1\nmin_delta = 1.0")
    .replace(/name = "a5"/, "$&\nlearning_rate = 1e30");

function expectSame(one: string, other: string): void {
  const failed = (path: string) => metrics(outputOf(path), "failed").map(({ adapter, message }) => [adapter, message]);
  expect(failed(one)).toEqual(failed(other));
  expect(failed(one)).toEqual([["a5", expect.stringContaining("step 2: the loss is NaN")]]);
  expect(leftOf(outputOf(one), "a4").steps.length).toBe(6); // of 9
  for (const i of ADAPTERS.filter((i) => i !== 5)) {
    expect(leftOf(outputOf(one), `a${i}`)).toEqual(leftOf(outputOf(other), `a${i}`));
    expect(leftOf(outputOf(one), `a${i}`).steps.length).toBeGreaterThan(1);
  }
  expect(existsSync(join(outputOf(one), "a5"))).toBe(false);
}

test("with room for two of seven, in one stage or two, killed and continued, each comes out as where all have room", async () => {
  const roomy = place.project(longer(seven(""), 3), SUMS);
  expect((await place.mlora("run", roomy)).code).toBe(1); // one cannot be trained
  const tight = longer(seven("resident_adapters = 2\ncheckpoint = { steps = 2 }"), 3);
  for (const more of [[], ["--stages", "2"]]) {
    const path = place.project(tight, SUMS);
    expect((await place.mlora("run", path, ...more)).code).toBe(1);
    expectSame(path, roomy);
  }
  const { killed, factor } = await inTheMiddle(async (factor) => {
    const killed = place.project(longer(tight, factor), SUMS);
    for (const [steps, signal] of [
      [15, "SIGKILL"],
      [30, "SIGINT"],
      [45, "SIGKILL"],
    ] as const) {
      const running = place.start(["run", killed]);
      const file = join(outputOf(killed), "metrics.jsonl");
      const made = () => existsSync(file) && metrics(outputOf(killed), "step").length >= steps;
      if (!(await beforeItsEnd(running, "steps", made))) return null;
      running.kill(signal);
      const { code } = await running.ended;
      if (signal === "SIGKILL" && code !== 137) return null;
    }
    return { killed, factor };
  });
  await place.mlora("run", killed);
  if (factor === 1) return expectSame(killed, roomy);
  const undisturbed = place.project(longer(seven(""), 3 * factor), SUMS);
  await place.mlora("run", undisturbed);
  expectSame(killed, undisturbed);
}, 240_000);

test("the plan says how many are on the device and how many wait, and in how much memory", async () => {
  const planned = await place.mlora("plan", place.project(seven("resident_adapters = 2"), SUMS));
  expect([planned.code, planned.out]).toEqual([
    0,
    expect.stringMatching(/2 of 7 adapters are on the device at once.* host memory/),
  ]);
  const { out } = await place.mlora("plan", place.project(seven("resident_adapters = 2"), SUMS), "--json");
  const { slots, resident, host_bytes: hostBytes, adapters } = JSON.parse(out);
  const bytes = (adapters as { memory_bytes: number }[]).map((of) => of.memory_bytes).sort((a, b) => b - a);
  expect([slots, resident]).toEqual([7, 2]);
  expect(hostBytes).toBe(sum(bytes.slice(2)) + 2 * bytes[0]!); // room for two that are on their way
});

test("a GPU's host admits as many as its memory holds; what is asked for and has no room there is refused in one line", () => {
  const spec = shapeOf("llama2-7b");
  const gib = 2 ** 30;
  const cpu = chooseDevice("cpu", "fp32");
  const gpu = { ...cpu, kind: "cuda" as const, name: "a GPU", compute: "bf16" as const, rowTile: 128, threads: 0, host: "" };
  const work = { adapters: 120, rows: 1, length: 512, rank: 16, targets: "qkvo" as const };
  const planned = (
    hostFreeBytes: number,
    run: { readonly slots?: number; readonly residentAdapters?: number } = {},
    allAtOnce = false,
  ) => {
    const recipe = recipeOf(work, { shape: "llama2-7b", spec }, 4);
    const row = { length: 512, longest: 512, targets: 512 };
    const device = { ...gpu, totalBytes: 48 * gib, freeBytes: 46 * gib, hostFreeBytes };
    const summaries = recipe.adapters.map(() => ({ train: [row], eval: [] }));
    return makePlan({ ...recipe, run: { ...recipe.run, ...run } }, spec, summaries, [device], { allAtOnce });
  };
  const enough = planned(100 * gib);
  const each = bytesOnStages(enough, enough.adapters[0]!)[0]!;
  expect(enough.slots).toBe(120);
  expect(enough.resident).toBeGreaterThan(64);
  expect(enough.stages[0]!.sizes.hostBytes).toBe((120 - enough.resident + 2) * each);
  const some = planned(5 * gib);
  expect(some.slots).toBe(some.resident + Math.floor((0.9 * 5 * gib) / each) - 2);
  const none = planned(1);
  expect([none.stages[0]!.sizes.hostBytes, none.slots]).toEqual([0, none.resident]);
  expect(() => planned(5 * gib, { slots: 120 })).toThrow(
    /^120 adapters are to train at once: \d+ fit on the devices, and the others need [\d.]+ GiB of host memory, which has 4.50 GiB for it$/,
  );
  expect(planned(100 * gib, { residentAdapters: 32 }).resident).toBe(32);
  const primitives = planned(100 * gib, { slots: 120 }, true); // which have no turns
  expect([primitives.stages[0]!.sizes.hostBytes, primitives.slots]).toEqual([0, primitives.resident]);
});

test("adapters take turns: none is on the device for more than its turn while others wait, and the device holds what it has room for", async () => {
  const golden = loadGolden("llama");
  const spec = readModelSpec(golden.model);
  const recipe = goldenRecipe(golden);
  const ranks = [4, 12, 6, 8, 32, 5, 9];
  const adapters = ranks.map((rank, i) => ({
    ...{ ...recipe.adapters[i % 2]!, name: `r${rank}`, rank, steps: 6, epochs: null, initialAdapter: null },
  }));
  const rows = adapters.map((_, i) => golden.adapters[i % 2]!.rows);
  const summaries = rows.map((of) => ({
    train: of.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: 1 })),
    eval: [],
  }));
  const device = { ...chooseDevice("cpu", "fp32"), host: "" };

  async function trained(residentAdapters: number | null) {
    const plan = makePlan({ ...recipe, run: { ...recipe.run, residentAdapters }, adapters }, spec, summaries, [device]);
    const bytes = plan.adapters.map((adapter) => bytesOnStages(plan, adapter)[0]!);
    await using opened = await openLocalStages(setupsOf(plan, { folder: golden.model }));
    const [here, slots] = [new Set<number>(), new Map<number, number>()];
    let [most, fetches] = [0, 0];
    const bus: Bus = {
      stages: 1,
      request: async (stage, asked) => {
        const request = asked as StageRequest;
        if (request.type === "admit") slots.set(request.slot, bytes[ranks.indexOf(request.adapter.rank)]!);
        if (request.type === "admit" || request.type === "fetch") here.add(request.slot);
        if (request.type === "release") here.delete(request.slot);
        if (request.type === "fetch") fetches++;
        most = Math.max(most, sum([...here].map((slot) => slots.get(slot)!)));
        const reply = await opened.request(stage, asked);
        if (request.type === "offload") here.delete(request.slot);
        return reply;
      },
      [Symbol.asyncDispose]: () => Promise.resolve(),
    };
    const data = rows.map((train) => ({ train, eval: [] }));
    const steps: string[] = [];
    const stop = new AbortController().signal;
    const emit: Parameters<typeof run>[0]["emit"] = (event) => {
      if (event.type === "step") steps.push(event.adapter);
    };
    const result = await run({ plan, data, bus, output: null, emit, store: memoryStore(), stop });
    const losses = result.adapters.map(({ name, status, firstLoss, lastLoss }) => [name, status, firstLoss, lastLoss]);
    return { plan, losses, steps, most, fetches };
  }
  const all = await trained(null);
  expect([all.fetches, all.plan.stages[0]!.sizes.hostBytes]).toEqual([0, 0]);
  const some = await trained(2);
  expect(some.losses).toEqual(all.losses);
  expect(some.losses.every(([, status]) => status === "done")).toBe(true);
  const { blockBytes, hostBytes } = some.plan.stages[0]!.sizes;
  expect(hostBytes).toBeGreaterThan(0);
  expect(some.most).toBeLessThanOrEqual(blockBytes);
  expect(some.fetches).toBeGreaterThan(ranks.length);
  // Between the first and the last step of any, none is more than two turns ahead.
  for (let at = 1; at <= some.steps.length; at++) {
    const made = adapters.map(({ name }) => some.steps.slice(0, at).filter((of) => of === name).length);
    expect(maxOf(made) - Math.min(...made)).toBeLessThanOrEqual(2 * maxOf([1, ...turnsOf(some.steps)]));
  }
});

/** Lengths of runs of steps of one adapter. */
function turnsOf(steps: readonly string[]): number[] {
  const lengths: number[] = [];
  for (const [i, adapter] of steps.entries())
    if (steps[i - 1] === adapter) lengths[lengths.length - 1]!++;
    else lengths.push(1);
  return lengths;
}

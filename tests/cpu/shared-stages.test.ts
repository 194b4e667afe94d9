// Stages that jobs and clients of the primitives share: adapters come at any time, wait for slots, are set aside and come back,
// and each comes to the bytes of a run of its own.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { sum } from "../../src/base/shape.ts";
import type { Bus } from "../../src/bus/bus.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { loadRecipe } from "../../src/recipe/load.ts";
import { rateFactor } from "../../src/schedule/rate.ts";
import { stepsOf } from "../../src/schedule/steps.ts";
import { readRequest, specFor, summariesOf } from "../../src/session/preparation/prepare.ts";
import { capacityRecipe } from "../../src/session/primitives/capacity.ts";
import { measureReferences, trainSteps } from "../../src/session/primitives/job.ts";
import { openPrimitives, planPrimitives } from "../../src/session/primitives/open.ts";
import { Primitives, type PrimitivesOptions } from "../../src/session/primitives/primitives.ts";
import { openSession } from "../../src/session/session.ts";
import { ofStep, PrimitivesPlace, STEPS } from "../helpers/primitives.ts";
import { weightsOf } from "../helpers/primitives-suite.ts";
import { SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new PrimitivesPlace();
const programs = new Workplace(2);
afterAll(() => {
  place[Symbol.dispose]();
  programs[Symbol.dispose]();
});

const NAMES = ["lora", "dora", "vera", "pissa", "sgd", "tokens"];

/** The stages of these adapters with `slots` slots. `requests` counts those of each type. */
async function shared(slots: number, timing: PrimitivesOptions) {
  const recipe = place.recipe(NAMES);
  const plan = planPrimitives({ ...recipe, run: { ...recipe.run, slots } });
  const bus = await openLocalStages(setupsOf(plan, { folder: place.model }));
  const requests: Record<string, number> = {};
  const held = new Set<number>();
  let most = 0;
  const counting: Bus = {
    stages: bus.stages,
    request(stage, request) {
      requests[request.type] = (requests[request.type] ?? 0) + 1;
      if (request.type === "admit") held.add((request as unknown as { slot: number }).slot);
      if (request.type === "release") held.delete((request as unknown as { slot: number }).slot);
      most = Math.max(most, held.size);
      return bus.request(stage, request);
    },
    [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
  };
  const on = await Primitives.begin(counting, plan, counting, timing);
  return { on, requests, most: () => most };
}

/** Two calls that add up, and a step: between any two of them the adapter may have to make room. */
async function halves(on: Primitives, name: string): Promise<void> {
  for (let step = 0; step < STEPS; step++) {
    const rows = ofStep(name, step);
    await on.forwardBackward(name, rows.slice(0, 2));
    await on.forwardBackward(name, rows.slice(2));
    await on.step(name);
  }
}

test("adapters that are set aside between any two calls, with gradients, come back bit for bit", async () => {
  await using all = await place.open(NAMES);
  for (const name of NAMES) await halves(all, name);
  const expected = new Map<string, string>();
  for (const name of NAMES) expected.set(name, await weightsOf(place, all, name));

  const { on, requests, most } = await shared(2, { idleMs: 0, turnMs: 0 });
  await using _on = on;
  await Promise.all(NAMES.map((name) => halves(on, name)));
  for (const name of NAMES) expect(await weightsOf(place, on, name)).toBe(expected.get(name)!);
  expect(most()).toBe(2);
  expect(requests["release"]).toBeGreaterThan(NAMES.length); // they did make room for each other
});

test("calls that add up make the same step where the adapter makes room between them, and on two stages", async () => {
  const { on } = await shared(1, {});
  await using _on = on;
  await using alone = await place.open(NAMES);
  await using staged = await place.open(NAMES, 2);
  for (const name of ["vera", "tokens"]) {
    for (const rows of [ofStep(name, 0).slice(0, 3), ofStep(name, 0).slice(3), ofStep(name, 1)]) {
      for (const each of [alone, staged, on]) await each.forwardBackward(name, rows);
      await on.forward("lora", rows); // takes the one slot
    }
    const made = await alone.step(name);
    for (const each of [staged, on]) {
      expect(await each.step(name), name).toEqual(made);
      expect(await weightsOf(place, each, name), name).toBe(await weightsOf(place, alone, name));
    }
  }
});

test("an adapter that is not used gives its memory to others; one that is removed is gone", async () => {
  const { on, most } = await shared(1, {});
  await using _on = on;
  for (const name of NAMES) await on.forwardBackward(name, ofStep(name, 0)); // none of them steps
  expect(most()).toBe(1);
  for (const name of NAMES) await on.step(name);
  await on.remove("lora");
  expect(on.adapters).not.toContain("lora");
  await expect(on.step("lora")).rejects.toMatchObject({ code: "primitives.adapter" });
  const [again] = place.recipe(["lora"]).adapters;
  await on.add(again!);
  expect(on.stepsOf("lora")).toBe(0);
  await expect(on.add(again!)).rejects.toMatchObject({ code: "primitives.adapter" });
  await expect(on.add({ ...again!, name: "wide", rank: 64 })).rejects.toMatchObject({ code: "primitives.capacity" });
});

test("samples that are given up end, and the others come as they would", async () => {
  await using on = await place.open(["lora"]);
  const options = { maxTokens: 40, sampling: { temperature: 1 }, seed: 4 };
  const alone = await on.sample("lora", [[1, 2, 3]], options);
  const stop = new AbortController();
  let heard = 0;
  const given = on.stream(null, [[5], [6]], { ...options, n: 2, signal: stop.signal }, () => {
    if (++heard === 6) stop.abort(new Error("given up"));
  });
  const kept = on.sample("lora", [[1, 2, 3]], options);
  await expect(given).rejects.toThrow("given up");
  expect(await kept).toEqual(alone);
  expect(heard).toBeLessThan(12);
  await expect(on.stream(null, [[5]], { ...options, signal: stop.signal }, () => undefined)).rejects.toThrow("given up");
});

test("jobs, the primitives by hand and `mlora run` come to the same bytes, next to each other", async () => {
  const dpo = `
[[adapter]]
name = "pairs"
data = "pairs.jsonl"
rank = 4
dropout = 0.1
batch_size = 2
steps = 4
objective = "dpo"
`;
  const pairs = SUMS["rows.jsonl"].replaceAll(/"completion":"(\d+)"/g, '"chosen":"$1","rejected":"7$1"');
  const path = programs.project(`${unlike([0, 1, 3], "cpu")}${dpo}`, { ...SUMS, "pairs.jsonl": pairs });
  const recipe = loadRecipe(path);
  const session = await openSession(recipe, { isReachable: false });
  const losses = new Map<string, number[]>();
  for await (const event of session.events())
    if (event.type === "step") losses.set(event.adapter, [...(losses.get(event.adapter) ?? []), event.loss]);
  await session.done;
  const bytesIn = (folder: string) => readFileSync(join(folder, "adapter_model.safetensors")).toString("base64");
  const names = recipe.adapters.map(({ name }) => name);
  const expected = new Map(names.map((name) => [name, bytesIn(join(recipe.run.output, name))]));

  const capacity = { slots: 3, rank: 16, methods: ["lora", "dora"] as const, maxLength: 128, batchSize: 8 };
  const { model, run } = { model: { path: recipe.model.path }, run: { output: "none", tokens_per_microbatch: 60 } };
  const asked = { model, run: { ...run, device: "cpu" }, path };
  await using on = await openPrimitives(capacityRecipe(capacity, asked), { isEmpty: true });
  const { data } = await readRequest(recipe, specFor(recipe));
  const summaries = summariesOf(data);

  const job = async (i: number, name: string) => {
    const adapter = await on.add({ ...recipe.adapters[i]!, name }, summaries[i]);
    const { train } = data[i]!;
    const found: number[] = [];
    for await (const { loss } of trainSteps(on, adapter, train, await measureReferences(on, adapter, train))) found.push(loss);
    return found;
  };
  const byHand = async (i: number, name: string) => {
    const adapter = await on.add({ ...recipe.adapters[i]!, name }, summaries[i]);
    for (const [step, { rows }] of [...stepsOf(adapter.work, on.plan.tokensPerMicrobatch)].entries()) {
      await on.forwardBackward(
        name,
        rows.map((row) => data[i]!.train[row]!),
      );
      const { optimizer, schedule } = recipe.adapters[i]!;
      await on.step(name, { learningRate: optimizer.learningRate * rateFactor(schedule, step, adapter.steps) });
    }
  };
  const trained = await Promise.all([...names.map((name, i) => job(i, name)), ...[0, 1, 2].map((i) => byHand(i, `hand-${i}`))]);
  for (const [i, name] of names.entries()) {
    await on.save(name, join(programs.root, name));
    expect(bytesIn(join(programs.root, name))).toBe(expected.get(name)!);
    const [ours, theirs] = [trained[i]!, losses.get(name)!];
    expect(ours.length).toBe(theirs.length);
    expect(sum(ours)).toBeCloseTo(sum(theirs), 5);
  }
  for (const i of [0, 1, 2]) {
    await on.save(`hand-${i}`, join(programs.root, `hand-${i}`));
    expect(bytesIn(join(programs.root, `hand-${i}`))).toBe(expected.get(names[i]!)!);
  }
});

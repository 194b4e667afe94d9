// What users ask of adapters at awkward moments, during a step and during an evaluation, changes only when they train: which
// adapter is dropped at a rung or ends early is as in an undisturbed run.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sleep } from "../../src/base/clock.ts";
import { RequestError } from "../../src/base/errors.ts";
import { Rng } from "../../src/base/rng.ts";
import type { Bus } from "../../src/bus/bus.ts";
import type { StageRequest } from "../../src/bus/messages.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { makePlan } from "../../src/plan/plan.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import { Training } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

/** Random runs; more by MLORA_SEEDS. */
const SEEDS = Number(process.env["MLORA_SEEDS"] ?? 5);

const root = mkdtempSync(join(tmpdir(), "mlora-lifecycle-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const golden = loadGolden("llama");
const spec = readModelSpec(golden.model);
const { rows, recipe } = golden.adapters[0]!;
const data = { train: rows, eval: rows.slice(0, 3) };
const lengths = (of: typeof rows) => of.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: 1 }));
const summary = { train: lengths(data.train), eval: lengths(data.eval) };
const adapter = (name: string, learningRate: number, changes: Partial<AdapterRecipe>): AdapterRecipe => ({
  ...{ ...recipe, name, steps: 8, epochs: null, ...changes },
  ...{ optimizer: { ...recipe.optimizer, learningRate }, schedule: { name: "constant", warmup: 0, minRatio: 0 } },
});

/** Trains the adapters; `during` is called whenever a request is sent to the stage, before it is, and may hold up its reply. */
async function trained(
  adapters: readonly AdapterRecipe[],
  during: (training: Training, request: StageRequest) => void | Promise<void> = () => undefined,
  slots = adapters.length,
  residentAdapters: number | null = null,
) {
  const device = { ...chooseDevice("cpu", "fp32"), host: "" };
  const base = goldenRecipe(golden, []);
  const plan = makePlan(
    { ...base, adapters, run: { ...base.run, slots, residentAdapters } },
    spec,
    adapters.map(() => summary),
    [device],
  );
  await using bus = await openLocalStages(setupsOf(plan, { folder: golden.model }));
  const watched = new Proxy(bus, {
    get: (of, key) => {
      const value = Reflect.get(of, key, of);
      if (key !== "request") return typeof value === "function" ? value.bind(of) : value;
      return (...[stage, request]: Parameters<Bus["request"]>) => {
        const held = during(training, request as StageRequest);
        const reply = of.request(stage, request);
        return held ? Promise.all([reply, held]).then(([found]) => found) : reply;
      };
    },
  });
  const training: Training = new Training({
    ...{ plan, data: adapters.map(() => data), bus: watched, output: null },
    ...{ stop: new AbortController().signal, emit: () => undefined },
  });
  const result = await training.run();
  return Object.fromEntries(result.adapters.map(({ name, status, steps, lastLoss }) => [name, { status, steps, lastLoss }]));
}

const stateOf = ({ controls }: Training, name: string) => controls.adapters.find((of) => of.name === name)!.state;

/** Resumes an adapter whenever it has left the stages, to its end. */
async function resuming(training: Training, name: string): Promise<void> {
  for (; !/^(done|early|dropped|failed)$/.test(stateOf(training, name)); await sleep(1))
    if (["paused", "at a rung"].includes(stateOf(training, name))) training.controls.resume(null);
}

async function until(training: Training, name: string, state: string): Promise<void> {
  while (stateOf(training, name) !== state) await sleep(1);
}

/** Pauses the adapter at each such request, and has it resumed. */
function pausing(name: string, at: "backward" | "evaluate") {
  let pauses = 0;
  return {
    get pauses() {
      return pauses;
    },
    during: (training: Training, request: StageRequest): void => {
      if (request.type !== at || !["training", "evaluating"].includes(stateOf(training, name))) return;
      training.controls.pause(name);
      if (++pauses === 1) void resuming(training, name);
    },
  };
}

test.each(["backward", "evaluate"] as const)(
  "an adapter that is paused at each %s and resumed is halved, or goes on, as undisturbed",
  async (at) => {
    const halving = { rung: 2, keep: 0.5, group: "sweep" };
    const sweep = [
      adapter("worst", 1e-6, { halving }),
      adapter("best", 1e-2, { halving }),
      adapter("good", 3e-3, { halving }),
      adapter("bad", 1e-5, { halving }),
    ];
    const undisturbed = await trained(sweep);
    expect(Object.values(undisturbed).filter(({ status }) => status === "dropped").length).toBe(3);
    for (const { name } of sweep) {
      const disturber = pausing(name, at);
      expect(await trained(sweep, disturber.during), `${name} is paused`).toEqual(undisturbed);
      expect(disturber.pauses).toBeGreaterThan(0);
    }
  },
);

test.each(["backward", "evaluate"] as const)(
  "an adapter that is paused at each %s and resumed ends by its patience as undisturbed",
  async (at) => {
    const one = [adapter("a", 0.5, { evalEvery: 1, patience: 2, steps: 20 })];
    const undisturbed = await trained(one);
    expect(undisturbed["a"]!.status).toBe("early");
    const disturber = pausing("a", at);
    expect(await trained(one, disturber.during)).toEqual(undisturbed);
    expect(disturber.pauses).toBeGreaterThan(0);
  },
);

test.each([
  ["where all that train are on the device", false],
  ["where most wait in host memory", true],
])(
  "adapters of all kinds come to the same whatever is paused and resumed, and whoever is preempted, %s",
  async (_, takesTurns) => {
    const halving = { rung: 2, keep: 0.5, group: "sweep" };
    const all = [
      adapter("s1", 1e-6, { halving }),
      adapter("s2", 1e-2, { halving, priority: 1 }),
      adapter("s3", 3e-3, { halving, evalEvery: 3 }),
      adapter("patient", 0.5, { evalEvery: 1, patience: 2, priority: 2 }),
      adapter("plain", 1e-3, { evalEvery: 1, priority: 3 }),
    ];
    const undisturbed = await trained(all);
    for (let seed = 0; seed < SEEDS; seed++) {
      const rng = new Rng(seed);
      let isOver = false;
      const faults: unknown[] = [];
      const ask = ({ controls }: Training) => {
        const { name } = all[rng.below(all.length)]!;
        try {
          if (rng.below(2) === 0) controls.pause(rng.below(4) === 0 ? null : name);
          else controls.resume(rng.below(4) === 0 ? null : name);
        } catch (error) {
          if (!(error instanceof RequestError)) faults.push(error); // it is paused, or it is not
        }
      };
      let training: Training | null = null;
      const resuming = async () => {
        for (; !isOver; await sleep(5)) training?.controls.resume(null);
      };
      const woken = resuming();
      const during = (of: Training) => {
        training = of;
        if (rng.below(3) > 0) return;
        if (rng.below(2) === 0) ask(of);
        else queueMicrotask(() => ask(of));
      };
      try {
        const [slots, resident] = takesTurns ? [3 + rng.below(3), 1 + rng.below(2)] : [1 + rng.below(3), null];
        expect(await trained(all, during, slots, resident), `seed ${seed}`).toEqual(undisturbed);
        expect(faults).toEqual([]);
      } finally {
        isOver = true;
        await woken;
      }
    }
  },
);

test("adapters that are paused while one of them is offloaded leave once, and come to the same", async () => {
  const all = ["a", "b", "c"].map((name) => adapter(name, 1e-3, { steps: 12 }));
  const undisturbed = await trained(all);
  let pauses = 0;
  const during = (training: Training, request: StageRequest): void => {
    if (request.type !== "offload" || pauses++ > 20) return;
    training.controls.pause(null);
    if (pauses === 1) for (const { name } of all) void resuming(training, name);
  };
  expect(await trained(all, during, 3, 1)).toEqual(undisturbed);
  expect(pauses).toBeGreaterThan(0);
});

test("an adapter that is paused at a rung is compared there, and stays paused", async () => {
  const halving = { rung: 2, keep: 0.5, group: "sweep" };
  const sweep = [adapter("best", 1e-2, { halving }), adapter("worst", 1e-6, { halving })];
  const undisturbed = await trained(sweep);
  const seen: unknown[] = [];
  let held = false;
  const disturbed = await trained(sweep, async (training, request) => {
    const isOther = request.type === "evaluate" && request.batch.sequences[0]!.adapter === 1;
    if (held || !isOther || training.controls.stepOf("worst") < 2) return;
    held = true; // the other's evaluation at the rung
    training.controls.pause("best");
    await until(training, "best", "at a rung");
    seen.push(training.controls.paused);
    void until(training, "best", "paused").then(() => seen.push(training.controls.resume("best")));
  });
  expect(seen).toEqual([["best"], "best: resumed"]);
  expect(disturbed).toEqual(undisturbed);
});

test("an adapter that leaves and comes back while others are still joining makes each of its steps once", async () => {
  const both = [adapter("a", 1e-2, {}), adapter("b", 1e-2, {})];
  const undisturbed = await trained(both);
  let held = false;
  const disturbed = await trained(both, async (training, request) => {
    if (held || request.type !== "evaluate" || request.batch.sequences[0]!.adapter === 0) return;
    held = true; // the evaluation of the other before its first step
    await until(training, "a", "training");
    training.controls.pause("a");
    await until(training, "a", "paused");
    training.controls.resume("a");
    await until(training, "a", "training");
    expect(training.controls.stepOf("a")).toBe(0);
  });
  expect(held).toBe(true);
  expect(disturbed).toEqual(undisturbed);
});

test("a stop is final: neither a pause nor a resume after it takes it back", async () => {
  let asked = false;
  const { a } = await trained([adapter("a", 1e-3, {})], ({ controls }, request) => {
    if (request.type !== "backward" || asked || controls.stepOf("a") < 3) return;
    asked = true;
    controls.stop("a");
    controls.pause(null);
    expect(() => controls.pause("a")).toThrow("'a' ends");
    controls.resume(null);
  });
  expect([asked, a!.status, a!.steps]).toEqual([true, "stopped", 3]);
});

// The order of work on a device that computes late: what is read while later passes are enqueued, reported and decided is
// what a device that computes at once has, bit for bit, for each objective, on one stage and on two.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Device } from "../../src/device/device.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { type ObjectiveName, objectiveOf } from "../../src/objectives/registry.ts";
import { makePlan } from "../../src/plan/plan.ts";
import type { AdapterRecipe } from "../../src/recipe/recipe.ts";
import { inputLength, longestSequence, type Row } from "../../src/schedule/pack.ts";
import type { SessionEvent } from "../../src/session/events/events.ts";
import type { AdapterData } from "../../src/session/scheduling/adapter-state.ts";
import { memoryStore } from "../../src/session/state/checkpoints.ts";
import { run } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";
import { LateDevice } from "../helpers/late.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-late-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const golden = loadGolden("llama");
const spec = readModelSpec(golden.model);
const { recipe, rows } = golden.adapters[0]!;

/** Rows of two sequences, of which every third is labelled as no example. */
const pairs = rows.map((row, i): Row => ({ ...row, other: rows[(i + 5) % rows.length]!, label: i % 3 !== 0 }));
const objective = (name: ObjectiveName) => objectiveOf(name, (path) => path);

type Case = { readonly recipe: AdapterRecipe; readonly data: AdapterData };
const caseOf = (name: string, of: ObjectiveName, changes: Partial<AdapterRecipe> = {}): Case => ({
  recipe: {
    ...{ ...recipe, name, objective: objective(of), initialAdapter: null, steps: 5, epochs: null, rank: 3 + name.length },
    ...{ dropout: name.length % 2 === 0 ? 0.1 : 0, batchSize: 2 + (name.length % 3), accumulation: 1 + (name.length % 2) },
    ...changes,
  },
  data: { train: of === "sft" ? rows : pairs, eval: (of === "sft" ? rows : pairs).slice(0, 3) },
});
const rate = (learningRate: number): Partial<AdapterRecipe> => ({ optimizer: { ...recipe.optimizer, learningRate } });

const CASES: readonly Case[] = [
  caseOf("sft", "sft", { evalEvery: 2 }),
  caseOf("dora", "sft", { method: "dora", accumulation: 3 }),
  caseOf("vera", "sft", { method: "vera", rank: 24 }),
  caseOf("early", "sft", { evalEvery: 1, patience: 1, minDelta: 10, steps: 9 }),
  caseOf("lost", "sft", rate(1e30)),
  caseOf("dpo", "dpo", { evalEvery: 2 }),
  caseOf("kto", "kto"),
  caseOf("orpo", "orpo"),
  caseOf("cit", "cit", { batchSize: 3 }),
];

/** What is said of each adapter, and its files. */
async function trained(name: string, stages: number, open: () => Device, resident: number | null = null) {
  const devices = range(stages).map(() => ({ ...chooseDevice("cpu", "fp32"), host: "" }));
  const summaryOf = (all: readonly Row[]) =>
    all.map((row) => ({ length: inputLength(row), longest: longestSequence(row), targets: longestSequence(row) }));
  const base = goldenRecipe(golden, []);
  const plan = makePlan(
    {
      ...{ ...base, adapters: CASES.map((of) => of.recipe) },
      run: { ...base.run, stages, tokensPerMicrobatch: 150, residentAdapters: resident },
    },
    spec,
    CASES.map(({ data }) => ({ train: summaryOf(data.train), eval: summaryOf(data.eval) })),
    devices,
  );
  const output = join(root, name);
  const said = new Map<string, object[]>();
  const emit = (event: SessionEvent) => {
    if (event.type === "step") {
      const { adapter, step, loss, gradNorm, learningRate, preference } = event;
      said.set(adapter, [...(said.get(adapter) ?? []), { step, loss, gradNorm, learningRate, preference }]);
    } else if (event.type === "evaluation") {
      const { adapter, step, loss, exact } = event;
      said.set(adapter, [...(said.get(adapter) ?? []), { step, heldOut: loss, exact }]);
    }
  };
  const rowTile = plan.device.rowTile;
  const setups = setupsOf(plan, { folder: golden.model }).map((of) => ({ ...of, sizes: { ...of.sizes, chunk: 2 * rowTile } }));
  const result = await (async () => {
    await using bus = await openLocalStages(setups, undefined, open);
    const [data, stop] = [CASES.map((of) => of.data), new AbortController().signal];
    return await run({ plan, data, bus, output, emit, store: memoryStore(), stop });
  })();
  return result.adapters
    .toSorted((a, b) => a.name.localeCompare(b.name))
    .map(({ name, status, message, steps, firstLoss, lastLoss, after, folder }) => ({
      ...{ name, status, message, steps, firstLoss, lastLoss, after, said: said.get(name) },
      weights: folder && Bun.hash(readFileSync(join(folder, "adapter_model.safetensors"))),
    }));
}

test("late devices change nothing that is reported or decided, nor any weight", async () => {
  const want = await trained("at-once", 1, () => new CpuDevice(1));
  const statusOf = (name: string) => want.find((of) => of.name === name)!.status;
  expect([statusOf("early"), statusOf("lost"), statusOf("cit")]).toEqual(["early", "failed", "done"]);
  for (const [stages, resident, seed] of [
    [1, null, 1],
    [2, null, 2],
    [1, 3, 3],
    [2, 3, 4],
  ] as const) {
    const devices: LateDevice[] = [];
    const open = () => {
      devices.push(new LateDevice(10 * seed + devices.length));
      return devices.at(-1)!;
    };
    expect(await trained(`late-${seed}`, stages, open, resident), `${stages} stages, ${resident} resident`).toEqual(want);
    for (const { late } of devices) expect(late).toBeGreaterThan(50);
    expect(devices.at(-1)!.readings).toBeGreaterThan(2); // of several passes at once
  }
});

// Adapters that join at awkward moments: while the last results are saved, after the end, and a copy that is asked for while it
// is being made.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { lateAdapters } from "../../src/plan/late-adapters.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { inputLength } from "../../src/schedule/pack.ts";
import type { Listener } from "../../src/session/events/events.ts";
import { type CheckpointStore, memoryStore } from "../../src/session/state/checkpoints.ts";
import { Training } from "../../src/session/training/training.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-joining-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const golden = loadGolden("llama");
const [first, second] = [golden.adapters[0]!, golden.adapters[1]!];
const spec = readModelSpec(golden.model);
const summaryOf = ({ rows }: typeof first) => ({
  train: rows.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: 1 })),
  eval: [],
});
const dataOf = ({ rows }: typeof first) => ({ train: rows, eval: [] });

/** A run of the first adapter alone, with room for the second; `observe` is called with it before it begins. */
async function trained(
  output: string,
  observe: (training: () => Training, second: () => void) => Listener,
  kept: (training: Training, name: string) => void = () => undefined,
) {
  const device = { ...chooseDevice("cpu", "fp32"), host: "" };
  const both = goldenRecipe(golden, [first, second]);
  const plan = makePlan({ ...both, adapters: [both.adapters[0]!] }, spec, [summaryOf(first)], [device]);
  const capacity = makePlan(both, spec, [summaryOf(first), summaryOf(second)], [device]);
  const roomy = { ...plan, stages: capacity.stages, slots: capacity.slots };
  await using bus = await openLocalStages(setupsOf(roomy, { folder: golden.model }));
  const stop = new AbortController();
  const emit = observe(
    () => training,
    () => void training.controls.add(lateAdapters(roomy, [both.adapters[1]!], [summaryOf(second)]), [dataOf(second)]),
  );
  const memory = memoryStore();
  const store: CheckpointStore = {
    ...memory,
    save: (plan, adapter, ...rest) => {
      kept(training, adapter.name);
      return memory.save(plan, adapter, ...rest);
    },
  };
  const options = { plan: roomy, data: [dataOf(first)], bus, output: join(root, output), emit, store };
  const training: Training = new Training({ ...options, stop: stop.signal });
  return { result: await training.run(), training };
}

const statuses = ({ adapters }: { readonly adapters: readonly { readonly name: string; readonly status: string }[] }) =>
  Object.fromEntries(adapters.map(({ name, status }) => [name, status]));

test("an adapter that comes while the last result is saved is trained to its end; one that comes later is refused", async () => {
  let came = false;
  const { result, training } = await trained("late", (_, second) => ({ type }) => {
    if (type !== "saved") return;
    if (!came) second();
    came = true;
  });
  expect(statuses(result)).toEqual({ [first.name]: "done", [second.name]: "done" });
  const refused = (work: () => unknown) => {
    try {
      work();
    } catch (error) {
      return error instanceof RequestError ? error.code : error;
    }
    return null;
  };
  expect(refused(() => training.controls.add([], []))).toBe("control.ending");
});

test("a copy's name is taken from when it is asked for, also while it is being made", async () => {
  const taken: boolean[] = [];
  const isTaken = ({ controls }: Training) => controls.names.filter((name) => name === "twin").length === 1;
  const ask = (training: Training) => {
    const [copy] = lateAdapters(
      { spec, adapters: [], tokensPerMicrobatch: 4096, device: { kind: "cpu" } } as never,
      [{ ...first.recipe, name: "twin" }],
      [summaryOf(first)],
    );
    training.controls.fork(first.name, copy!);
  };
  const { result } = await trained(
    "copied",
    (training) => (event) => {
      if (event.type !== "step") return;
      if (event.step === 3) ask(training());
      if (event.step >= 3) taken.push(isTaken(training()));
    },
    (training, name) => name === "twin" && taken.push(isTaken(training)),
  );
  expect(statuses(result)).toEqual({ [first.name]: "done", twin: "done" });
  expect(taken.length).toBeGreaterThan(6);
  expect(taken.every((is) => is)).toBe(true);
});

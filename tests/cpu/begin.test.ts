// Beginnings that take long come layer by layer: the same numbers as in one go, on one stage and on two, and people hear of it.

import { expect, test } from "bun:test";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { chooseDevice } from "../../src/device/open.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { makePlan, type Plan } from "../../src/plan/plan.ts";
import { begin } from "../../src/session/state/initialise.ts";
import { factorsOf } from "../../src/session/state/parameters.ts";
import { admit, readState } from "../../src/session/state/slot.ts";
import { goldenRecipe, loadGolden } from "../helpers/golden.ts";

const golden = loadGolden("llama");
const spec = readModelSpec(golden.model);

function planOf(init: "pissa" | "pissa_niter_2" | "olora" | "default", precision: "fp32" | "nf4", stages: number): Plan {
  const recipe = goldenRecipe(golden);
  const adapter = { ...golden.adapters[0]!.recipe, init, rank: 5, initialAdapter: null };
  const row = { length: 9, longest: 9, targets: 1 };
  const all = { ...recipe, model: { ...recipe.model, precision }, run: { ...recipe.run, stages }, adapters: [adapter] };
  const device = { ...chooseDevice("cpu", precision), host: "" };
  return makePlan(all, spec, [{ train: [row], eval: [] }], Array(stages).fill(device));
}

type Told = { readonly factors: ReturnType<typeof factorsOf>; readonly said: readonly string[] };

async function begun(plan: Plan, slowly: boolean): Promise<Told> {
  await using bus = await openLocalStages(setupsOf(plan, { folder: golden.model }));
  const [adapter] = plan.adapters;
  const said: string[] = [];
  // Twice: what a slot held before, or half of a beginning, must not show.
  for (let round = 0; round < 2; round++)
    if (slowly) await begin({ bus, plan, adapter: adapter!, slot: 0 }, (text) => void said.push(text), { silence: 0 });
    else await admit(bus, 0, adapter!);
  const blocks = await readState(bus, 0, undefined);
  for (const { m, v } of blocks) expect([...m!, ...v!].every((value) => value === 0)).toBe(true);
  const params = blocks.map((of) => of.params);
  return { factors: factorsOf(plan, adapter!, params), said };
}

test.each(["pissa", "pissa_niter_2", "olora"] as const)("%s", async (init) => {
  const want = await begun(planOf(init, "fp32", 1), false);
  expect(want.factors.every(({ values }) => values.some((value) => value !== 0))).toBe(true);
  // The weights are those of the files, also where the base is held quantised.
  for (const [precision, stages] of [
    ["fp32", 1],
    ["fp32", 2],
    ["nf4", 2],
  ] as const) {
    const got = await begun(planOf(init, precision, stages), true);
    expect(got.factors).toEqual(want.factors);
    expect(got.said.length).toBe(2 * (1 + spec.layers));
    expect(got.said[0]).toContain(`a part of the base model's weights (${init}), which is computed now`);
    expect(got.said.at(-1)).toBe(`${init}: ${spec.layers} of ${spec.layers} layers decomposed`);
  }
});

test("others come at once, and nothing is said", async () => {
  const [want, got] = [await begun(planOf("default", "fp32", 1), false), await begun(planOf("default", "fp32", 2), true)];
  expect(got.factors).toEqual(want.factors);
  expect(got.said).toEqual([]);
});

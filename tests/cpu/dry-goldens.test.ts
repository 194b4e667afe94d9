// The goldens of all families on a GPU that launches nothing: a plan has them, and each launch finds its kernel and its
// arguments.

import { expect, test } from "bun:test";
import { DryGpu } from "../../scripts/dry-gpu.ts";
import { openLocalStages } from "../../src/cluster/local-stage.ts";
import { setupsOf } from "../../src/cluster/setup.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readModelFacts } from "../../src/files/modelfacts.ts";
import { makePlan } from "../../src/plan/plan.ts";
import { inputLength, type Row } from "../../src/schedule/pack.ts";
import { run } from "../../src/session/training/training.ts";
import { FAMILY_GOLDENS, loadFamilyGolden } from "../helpers/family-golden.ts";
import { goldenRecipe } from "../helpers/golden.ts";
import { kernelRows } from "../helpers/kernel-rows.ts";

const rows = kernelRows();

const lengths = (all: readonly Row[]) =>
  all.map((row) => ({ length: inputLength(row), longest: inputLength(row), targets: inputLength(row) }));

async function played(name: string): Promise<number> {
  using golden = loadFamilyGolden(name);
  let launches = 0;
  const open = () =>
    new DryGpu("f32", { major: 9, minor: 0 }, rows, (_, grid) => {
      if (grid) launches++;
    });
  using described = open();
  const { total: totalBytes, free: freeBytes } = described.memory();
  const device = {
    kind: "cuda",
    name: "dry",
    compute: "f32",
    rowTile: described.rowTile,
    threads: 0,
    ordinal: 0,
    count: 1,
  } as const;
  const data = golden.adapters.map((of) => ({ train: of.rows, eval: of.rows.slice(0, 2) }));
  const plan = makePlan(
    goldenRecipe(golden),
    readModelFacts(golden.model, readModelSpec(golden.model)).spec,
    data.map(({ train, eval: held }) => ({ train: lengths(train), eval: lengths(held) })),
    [{ ...device, note: null, totalBytes, freeBytes, host: "" }],
  );
  await using bus = await openLocalStages(setupsOf(plan, { folder: golden.model }), undefined, open);
  const { adapters } = await run({ plan, data, bus, output: null, emit: () => undefined, stop: new AbortController().signal });
  expect(adapters.map(({ status }) => status)).toEqual(adapters.map(() => "done"));
  return launches;
}

test.each(FAMILY_GOLDENS)("%s", async (name) => {
  expect(await played(name)).toBeGreaterThan(100);
});

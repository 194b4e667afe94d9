// Prints which GPU kernels `mlora run RECIPE` can launch, a line each, for scripts/kernels --for. Needs no GPU.
//
//   kernels-for.ts RECIPE [--gpu 9.0] <ROWS        ROWS: what kernels/triton/compile.py --rows prints
//
// The first step of the run is played on a device that launches nothing (dry-gpu.ts): with all adapters together and with
// each kind of adapter alone, since adapters end at different times, and with each way of recomputation, which memory decides.
// Without --gpu it is for the GPUs of this machine. Prints nothing where the recipe runs on the CPU.

import { MloraError, RequestError, RunError, textOf } from "../src/base/errors.ts";
import { openLocalStages } from "../src/cluster/local-stage.ts";
import { setupsOf } from "../src/cluster/setup.ts";
import { type Gpu, isSupported, listGpus } from "../src/device/cuda/gpus.ts";
import { type KernelRow, parseManifest } from "../src/device/cuda/manifest.ts";
import { titleOf } from "../src/device/cuda/variants.ts";
import { loadRecipe } from "../src/recipe/load.ts";
import type { AdapterResult, SessionEvent } from "../src/session/events/events.ts";
import { planOn, type Request, readRequest, specFor } from "../src/session/preparation/prepare.ts";
import { Training } from "../src/session/training/training.ts";
import { DryGpu } from "./dry-gpu.ts";

type Capability = Pick<Gpu, "major" | "minor">;

/** The rows, in their order, that a run of this recipe can launch on such a GPU. Throws RequestErrors, as the run would. */
export async function kernelsFor(
  rows: readonly KernelRow[],
  recipePath: string,
  capability: Capability,
): Promise<readonly KernelRow[]> {
  const recipe = loadRecipe(recipePath, { stages: 1 });
  const request = await readRequest({ ...recipe, run: { ...recipe.run, slots: null } }, specFor(recipe));
  const found = new Set<KernelRow>();
  const { recomputation } = recipe.run;
  const kinds = Map.groupBy(recipe.adapters, (of) =>
    JSON.stringify([of.method, of.objective, of.targets, of.exclude, of.layers, of.rank, of.rankPattern, of.trainableTokens]),
  );
  const alone = kinds.size < 2 ? [] : [...kinds.values()].map((of) => of[0]!.name);
  for (const mode of recomputation === "auto" ? (["none", "selective", "full"] as const) : [recomputation])
    for (const name of [null, ...alone])
      await play({ ...request, recipe: { ...request.recipe, run: { ...request.recipe.run, recomputation: mode } } }, name);
  return rows.filter((row) => found.has(row));

  /** Until each adapter, or the one of this name, has made a step. */
  async function play(of: Request, only: string | null): Promise<void> {
    const compute = of.recipe.model.precision === "fp32" ? "f32" : "bf16";
    const open = () => new DryGpu(compute, capability, rows, (row) => found.add(row));
    using described = open();
    const { name, rowTile, threads } = described;
    const { total: totalBytes, free: freeBytes } = described.memory();
    const memory = { totalBytes, freeBytes };
    const device = { kind: "cuda", name, compute, rowTile, threads, ordinal: 0, count: 1, note: null } as const;
    const plan = planOn(of, [{ ...device, ...memory, host: "" }]);
    const stop = new AbortController();
    await using bus = await openLocalStages(setupsOf(plan, { folder: of.recipe.model.path }), stop.signal, open);
    const waiting = new Set(
      plan.adapters.map((adapter) => adapter.name).filter((adapter) => only === null || adapter === only),
    );
    const resumed = new Map(
      plan.adapters.filter((adapter) => !waiting.has(adapter.name)).map((adapter) => [adapter.name, ENDED]),
    );
    const emit = (event: SessionEvent): void => {
      if (event.type === "failed")
        throw new RunError("kernels.dry", `adapter '${event.adapter}' cannot be played: ${event.message}`);
      if (event.type !== "step") return;
      waiting.delete(event.adapter);
      if (waiting.size === 0) stop.abort();
    };
    await new Training({
      ...{ plan, data: of.data, bus, output: null, emit, stop: stop.signal, resumed },
    }).run();
    if (waiting.size > 0) throw new RunError("kernels.dry", `${[...waiting].join(", ")} made no step`);
  }
}

const ENDED: AdapterResult = {
  ...{ name: "", status: "done", message: null, steps: 1, tokens: 1, seconds: 0, before: null, after: null },
  ...{ firstLoss: null, lastLoss: null, folder: null, made: null as never },
};

/** Capabilities of the GPUs here that kernels run on; none where there is no driver or no such GPU. */
function capabilitiesHere(): readonly Capability[] {
  try {
    return listGpus().gpus.filter(isSupported);
  } catch (error) {
    if (error instanceof RunError) return [];
    throw error;
  }
}

function parseCapability(text: string): Capability {
  const [, major, minor] = /^(\d+)\.(\d)$/.exec(text) ?? [];
  const capability = { major: Number(major), minor: Number(minor) };
  if (!major || !isSupported(capability))
    throw new RequestError("cli.flags", `--gpu is '${text}'`, "give a compute capability from 8.0 on, such as 9.0");
  return capability;
}

async function main([recipe, flag, value, ...rest]: readonly string[]): Promise<void> {
  if (recipe === undefined || rest.length > 0 || (flag !== undefined && (flag !== "--gpu" || value === undefined)))
    throw new RequestError("cli.usage", "usage: kernels-for.ts RECIPE [--gpu 9.0] <ROWS");
  const rows = parseManifest(await Bun.stdin.text());
  const isOnCpu = loadRecipe(recipe).run.device === "cpu";
  const capabilities = value !== undefined ? [parseCapability(value)] : isOnCpu ? [] : capabilitiesHere();
  const found = new Set<KernelRow>();
  for (const capability of capabilities) for (const row of await kernelsFor(rows, recipe, capability)) found.add(row);
  for (const row of rows) if (found.has(row)) console.log(`${row.source_sha256} ${titleOf(row)}`);
}

if (import.meta.main)
  try {
    await main(process.argv.slice(2));
  } catch (error) {
    if (!(error instanceof MloraError)) throw error;
    console.error(`error[${error.code}]: ${textOf(error)}${error.hint ? `\nhint: ${error.hint}` : ""}`);
    process.exit(error.exit);
  }

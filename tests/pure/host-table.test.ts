// Embeddings of layers, of which a token reads one row: in the machine's memory next to a GPU, fetched while the first layer
// computes, and counted there.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { NullDevice } from "../../src/device/null.ts";
import { Stage } from "../../src/engine/stage.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { stageHostBytes } from "../../src/plan/memory.ts";
import { makePlan, type StageDevice, totalMemory } from "../../src/plan/plan.ts";
import { parseRecipe } from "../../src/recipe/load.ts";
import { pack } from "../../src/schedule/pack.ts";
import { PlannedRun } from "../../src/session/planning/planned-run.ts";
import { sparseGpuFamilies } from "../helpers/gpu.ts";
import { adapterOn, randomFill, randomTokens, sparseFamilies, tinySizes, tinySpec, wholeModel } from "../helpers/tiny.ts";

const spec = sparseFamilies["gemma4"]!;

/** Notes when work aside begins and when later work waits for it, among the kernels. */
class Watched extends NullDevice {
  override aside(work: () => void): () => void {
    this.launched.push("aside");
    const end = super.aside(work);
    this.launched.push("main");
    return () => {
      end();
      this.launched.push("wait");
    };
  }
}

test("a pass fetches its rows once, aside, and waits for them just before the first layer's use", async () => {
  const device = new Watched();
  const adapter = adapterOn(spec, { rank: 4, scale: 1, targets: ["q_proj"] as const });
  const config = { spec, layerRange: wholeModel(spec), sizes: tinySizes(device, spec, [adapter], { layers: spec.layers }) };
  {
    using stage = await Stage.open(device, config, randomFill(device, 1), { previous: null, next: null });
    await stage.admit(0, { ...adapter, seed: 0, init: "default" });
    const samples = [randomTokens(new Rng(3), spec.vocab, 20)];
    const segment = { adapter: 0, samples, seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 };
    const batch = pack([segment], 1, device.rowTile);
    const forward = () => stage.forward(0, batch);
    const evaluate = async () => {
      await stage.evaluate(batch);
    };
    for (const run of [evaluate, forward]) {
      const start = device.launched.length;
      await run();
      const launched = device.launched.slice(start);
      const all = (name: string) => launched.flatMap((found, i) => (found === name ? [i] : []));
      const [begin, wait] = [launched.indexOf("aside"), launched.indexOf("wait")];
      expect([all("aside"), all("wait"), all("embed_fetch")]).toEqual([[begin], [wait], [begin + 1]]);
      expect(launched[begin + 2]).toBe("main");
      expect(begin).toBeLessThan(launched.indexOf("embed_forward"));
      expect(launched.indexOf("attention_forward")).toBeLessThan(wait);
      expect(all("attention_forward")[1]).toBeGreaterThan(wait);
    }
  }
  expect(device.live.size).toBe(0);
});

const gpu: StageDevice = {
  ...{ kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0, ordinal: 0, count: 1, note: null, host: "" },
  ...{ totalBytes: 2 ** 40, freeBytes: 2 ** 40 },
};
const cpu: StageDevice = { ...gpu, kind: "cpu", name: "a CPU", compute: "f32", rowTile: 24, threads: 2 };

const planOn = (of: typeof spec, ...devices: readonly StageDevice[]) => {
  const text = `[model]\npath = "m"\n[run]\noutput = "o"\nstages = ${devices.length}\n[[adapter]]\nname = "a"\ndata = "x"\nsteps = 1\n`;
  const row = { length: 9, longest: 9, targets: 4 };
  return makePlan(parseRecipe(text, "/r.toml"), of, [{ train: [row], eval: [] }], devices);
};
const weightsOf = (...of: Parameters<typeof planOn>): number => totalMemory(planOn(...of)).weights;

describe("the plan", () => {
  const spec = sparseGpuFamilies["gemma4"]!;
  const { size, vocab } = spec.perLayer!;
  const TABLE = vocab * spec.layers * size; // elements
  const smaller = { ...spec, perLayer: { size, vocab: 1 } };

  test("counts the table as the machine's memory on GPUs, and as weights on a CPU", () => {
    expect(weightsOf(spec, gpu)).toBe(weightsOf(smaller, gpu));
    expect(weightsOf(spec, cpu) - weightsOf(smaller, cpu)).toBeGreaterThan(4 * (TABLE - spec.layers * size) - 512);
    expect(stageHostBytes(spec, gpu)).toBeGreaterThanOrEqual(2 * TABLE);
    expect(stageHostBytes(spec, gpu)).toBeLessThan(2 * TABLE + 256);
    const facts = (...of: Parameters<typeof planOn>) => {
      const request = { data: [{ counts: { truncated: 0, dropped: 0 } }], notices: [] };
      return new PlannedRun(request as unknown as ConstructorParameters<typeof PlannedRun>[0], planOn(...of)).facts;
    };
    expect([facts(spec, gpu), facts(spec, cpu)].map((of) => of.host_weight_bytes)).toEqual([stageHostBytes(spec, gpu), 0]);
    expect([stageHostBytes(spec, cpu), stageHostBytes(tinySpec({}), gpu)]).toEqual([0, 0]);
  });

  test("is refused where a machine has too little, by its stages together", () => {
    const bytes = stageHostBytes(spec, gpu);
    const withFree = (hostFreeBytes: number, host: string) => ({ ...gpu, hostFreeBytes, host });
    const code = (plan: () => unknown): unknown => {
      try {
        plan();
        return null;
      } catch (error) {
        return (error as { code?: unknown }).code;
      }
    };
    expect(code(() => planOn(spec, withFree(bytes, "a")))).toBeNull();
    expect(code(() => planOn(spec, withFree(bytes - 1, "a")))).toBe("plan.host");
    const apart = { ...spec, kvSources: spec.kvSources!.map(() => null) }; // stages share no keys and values
    expect(code(() => planOn(apart, withFree(bytes, "a"), withFree(bytes, "b")))).toBeNull();
    expect(code(() => planOn(apart, withFree(bytes, "a"), withFree(bytes, "a")))).toBe("plan.host");
    const generation = (free: number) =>
      planGeneration(spec, withFree(free, ""), [], [{ adapter: -1, prompt: 4, limit: 2 }], "dense");
    expect([code(() => generation(bytes)), code(() => generation(bytes - 1))]).toEqual([null, "plan.host"]);
  });
});

// The promise: an adapter learns the same alone, with others, and over several stages.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { OPENBLAS_ROW_TILE } from "../../src/device/tile.ts";
import { crowdTables, expectSame, type Ground, train } from "../helpers/crowd.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";

const FAMILIES = { ...tinyFamilies, ...sparseFamilies };
const ground = (family: string): Ground => ({ spec: FAMILIES[family]!, open: () => new CpuDevice(2), passRows: 160 });

/** A layer, and after it four that share keys and values. */
const late = {
  ...FAMILIES["gemma4"]!,
  ...{ layers: 5, windows: [5, 5, null, 5, null], kvSources: [null, null, null, 1, 2], layerRopes: [1, 1, 0, 1, 0] },
};

describe("other adapters change nothing, bit for bit", () => {
  for (const family of Object.keys(FAMILIES))
    test(family, async () => {
      const everyone = await train(range(8), ground(family));
      const few = await train([5, 2, 0], ground(family));
      for (const i of [2, 0, 5]) {
        const alone = (await train([i], ground(family))).get(i)!;
        expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
        expectSame(everyone.get(i)!, alone);
        expectSame(few.get(i)!, alone);
      }
    });
});

// A stage on a processor whose products are OpenBLAS's has a larger tile, and so have all others of its run.
test.skipIf(new CpuDevice(1).rowTile === OPENBLAS_ROW_TILE)("a larger row tile changes nothing", async () => {
  for (const family of ["llama", "gemma4", "mixtral", "qwen3_5"]) {
    const [small, large] = await Promise.all([
      train([1, 2, 5], ground(family)),
      train([1, 2, 5], { ...ground(family), open: () => new CpuDevice(2, OPENBLAS_ROW_TILE) }),
    ]);
    for (const i of [1, 2, 5]) expectSame(large.get(i)!, small.get(i)!);
  }
});

describe("adapters in experts learn the same alone, with 31 others, and over two stages, bit for bit", () => {
  for (const family of ["mixtral", "gptOss", "glm4moe", "qwen3moe", "qwen3_5moe", "qwen3next"])
    test(family, async () => {
      const of: Ground = { ...ground(family), isInExperts: true };
      const everyone = await train(range(family === "mixtral" ? 32 : 8), of);
      const two = await train(range(8), of, [1]);
      for (const i of [0, 1, 2, 3]) {
        const alone = (await train([i], of)).get(i)!;
        expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
        expectSame(everyone.get(i)!, alone);
        expectSame(two.get(i)!, alone);
      }
    });
});

describe("what is computed again changes nothing, nor what waits in host memory, alone, with others, over two stages", () => {
  for (const family of ["llama", "gemma3", "gemma4", "mixtral", "qwen3_5", "granite_h"])
    test(family, async () => {
      const kept = await train([1, 2, 5, 6], ground(family));
      for (const [recomputation, hostInputs] of [
        ["full", 0],
        ["offload", 0],
        ["offload", 1],
        ["offload", 2],
      ] as const) {
        const of: Ground = { ...ground(family), recomputation, hostInputs };
        const all = await train([1, 2, 5, 6], of);
        const alone = await train([2], of);
        const staged = family === "gemma4" ? alone : await train([1, 2], of, [1]);
        for (const i of [1, 2, 5, 6]) expectSame(all.get(i)!, kept.get(i)!);
        for (const other of [alone, staged]) expectSame(other.get(2)!, kept.get(2)!);
      }
    });
});

test("two stages learn what one does", async () => {
  for (const family of ["llama", "qwen2", "gemma3", "granite", "phi3", "olmo3", "muse", "mixtral", "qwen3_5"]) {
    const one = await train([1, 2, 5], ground(family));
    const two = await train([1, 2, 5], ground(family), [1]);
    for (const i of [1, 2, 5]) expectSame(two.get(i)!, one.get(i)!);
  }
});

/** Layers of a model that is deep enough for passes to end in the middle of it, and of one whose last layers share keys. */
const deep = { ...FAMILIES["llama"]!, layers: 5, windows: [] };

describe("adapters that act in the last layers alone learn what they do next to one that acts in the first", () => {
  const grounds: Record<string, Ground> = {
    llama: { ...ground("llama"), spec: deep },
    gemma4: { ...ground("gemma4"), spec: late },
    "llama whose tables are trained": { ...ground("llama"), spec: deep, tables: crowdTables },
  };
  for (const [name, of] of Object.entries(grounds))
    test(name, async () => {
      const above: Ground = { ...of, firstLayer: (i) => [0, 2, 4, 1, 3, 3, 4, 2][i]! };
      const all = await train(range(8), above);
      const high = await train([2, 4, 5], above);
      const staged = await train([2, 1, 4, 5], above, [name === "gemma4" ? 1 : 2]);
      for (const i of [2, 4, 5]) {
        const alone = (await train([i], above)).get(i)!;
        expect(alone.losses.at(-1)).not.toBe(alone.losses[0]);
        for (const other of [all, high, staged]) expectSame(other.get(i)!, alone);
      }
      for (const recomputation of ["full", "offload"] as const)
        expectSame((await train([2, 4], { ...above, recomputation })).get(2)!, all.get(2)!);
    });
});

test("two stages learn what one does where the last layers share keys and values", async () => {
  const one = await train([1, 2, 5], { ...ground("gemma4"), spec: late });
  const two = await train([1, 2, 5], { ...ground("gemma4"), spec: late }, [1]);
  for (const i of [1, 2, 5]) expectSame(two.get(i)!, one.get(i)!);
});

test.each(["llama", "gemma4", "mixtral", "qwen3_5", "lfm2", "granite_h"])(
  "adapters of %s whose numbers are NaN change no other",
  async (family) => {
    const of: Ground = { ...ground(family), lost: [1, 3] };
    const all = await train([1, 2, 3, 0], of);
    for (const i of [1, 3]) expect(all.get(i)!.losses.at(-1)).toBeNaN();
    for (const i of [2, 0]) expectSame(all.get(i)!, (await train([i], of)).get(i)!);
  },
);

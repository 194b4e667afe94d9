// The promise: an adapter learns the same alone, with others, and over several stages.

import { describe, expect, test } from "bun:test";
import { range } from "../../src/base/shape.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { expectSame, type Ground, train } from "../helpers/crowd.ts";
import { tinyFamilies } from "../helpers/tiny.ts";

const ground = (family: string): Ground => ({ spec: tinyFamilies[family]!, open: () => new CpuDevice(2), passRows: 160 });

describe("other adapters change nothing, bit for bit", () => {
  for (const family of Object.keys(tinyFamilies))
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

test("two stages learn what one does", async () => {
  for (const family of ["llama", "qwen2", "gemma3", "granite", "phi3", "olmo3", "muse"]) {
    const one = await train([1, 2, 5], ground(family));
    const two = await train([1, 2, 5], ground(family), [1]);
    for (const i of [1, 2, 5]) expectSame(two.get(i)!, one.get(i)!);
  }
});

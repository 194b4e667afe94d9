// Adapters of every method among others, alone, in other slots, computed again, and from their exports: the same bits.

import { describe, test } from "bun:test";
import { CpuDevice } from "../../src/device/cpu.ts";
import { sparseFamilies, tinyFamilies } from "../helpers/tiny.ts";
import { expectSameWays } from "../helpers/ways.ts";

const LENGTHS = [[30, 20, 31], [12, 17], [4, 3], [25], [2, 9, 11], [1], [40, 1], [7, 7]];

describe("what adapters learn and say on a CPU has the same bits", () => {
  for (const [name, spec] of Object.entries({
    llama: tinyFamilies["llama"]!,
    qwen2: tinyFamilies["qwen2"]!,
    gemma4: sparseFamilies["gemma4"]!,
    qwen3moe: sparseFamilies["qwen3moe"]!,
    qwen3_5: sparseFamilies["qwen3_5"]!,
  }))
    test(name, () => expectSameWays({ open: () => new CpuDevice(2), spec, lengths: LENGTHS, prompts: [5, 30] }), 60_000);
});

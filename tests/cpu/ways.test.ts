// Adapters of every method among others, alone, in other slots, computed again, and from their exports: the same bits.

import { describe, test } from "bun:test";
import type { WeightFormat } from "../../src/base/precision.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { needs } from "../helpers/needs.ts";
import { sparseFamilies, tinySpec } from "../helpers/tiny.ts";
import { expectSameWays } from "../helpers/ways.ts";

const LENGTHS = [[30, 20, 31], [12, 17], [4, 3], [25], [2, 9, 11], [1], [40, 1], [7, 7]];

const PROMPTS = [5, 30];

describe("what adapters learn and say on a CPU has the same bits", () => {
  for (const [name, spec] of Object.entries({
    gemma4: sparseFamilies["gemma4"]!,
    qwen3moe: sparseFamilies["qwen3moe"]!,
  }))
    test(name, () => expectSameWays({ open: () => new CpuDevice(2), spec, lengths: LENGTHS, prompts: PROMPTS }), 60_000);

  // Products that OpenBLAS does not call small, and whole blocks of codes.
  const wide = tinySpec({ hidden: 192, intermediate: 448, vocab: 300, headDim: 48 });
  const over = (format: WeightFormat) =>
    expectSameWays({ open: () => new CpuDevice(3), spec: wide, format, lengths: LENGTHS, prompts: PROMPTS });
  test("over a base in nf4", () => over("nf4"), 60_000);
  needs("bf16")("in products", () => {
    test("in bf16", () => over("bf16-products"), 60_000);
  });
});

// Adapters of every method among others, alone, in other slots, computed again, and from their exports: the same bits on a GPU,
// whether rows go by tiles or by rows, in the sizes from which on kernels cut their sums: inputs of more than 1024 features,
// and adapters with more tiles in a pass than a program of the gradients takes.

import { test } from "bun:test";
import type { WeightFormat } from "../../src/base/precision.ts";
import type { Device } from "../../src/device/device.ts";
import { weightsOf } from "../../src/engine/weights/weight-source.ts";
import { gpuFamilies, openingGpu, sparseGpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { tinySpec } from "../helpers/tiny.ts";
import { expectSameWays } from "../helpers/ways.ts";

const LENGTHS = [[300, 260, 310, 290], [150, 170, 165, 140], [40, 3], [11], [129], [2, 40, 41], [90, 7, 60, 1], [17]];
const PROMPTS = [9, 25, 70, 140];
const wide = tinySpec({ hidden: 1152, intermediate: 2176, headDim: 64, heads: 6, vocab: 1003 });

const CASES = [
  ...(["dense", "int8", "nf4", "fp8", "nf4-fp8"] as const).map((format) => ["bf16", format] as const),
  ...(["dense", "int8", "nf4"] as const).map((format) => ["f32", format] as const),
] as [compute: "bf16" | "f32", format: WeightFormat][];

const KERNELS = ["", "ptr"] as const;

needs("gpu")("what adapters learn and say on a GPU has the same bits", () => {
  test.each(
    CASES.flatMap((of) => (of[0] === "f32" ? [[...of, ""] as const] : KERNELS.map((kernels) => [...of, kernels] as const))),
  )(
    "in %s, the base %s %s",
    async (compute, format, kernels) => {
      const fill = (device: Device) => weightsOf({ randomSeed: 1 }, wide, device).fill;
      const open = openingGpu(compute, kernels);
      await expectSameWays({ open, spec: wide, format, fill, lengths: LENGTHS, prompts: PROMPTS });
    },
    300_000,
  );

  for (const [compute, kernels] of [
    ["bf16", ""],
    ["bf16", "ptr"],
    ["f32", ""],
  ] as const)
    test.each(["llama", "gemma4", "qwen3_5", "qwen3moe", "youtu", "deepseekV3"])(
      `%s in ${compute} ${kernels}`,
      async (family) => {
        const spec = { ...gpuFamilies, ...sparseGpuFamilies }[family]!;
        const open = openingGpu(compute, kernels);
        await expectSameWays({ open, spec, lengths: LENGTHS.slice(1), prompts: PROMPTS });
      },
      300_000,
    );
});

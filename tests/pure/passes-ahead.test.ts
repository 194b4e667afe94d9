// Which stages may be given a pass of generation before the last one is answered.

import { expect, test } from "bun:test";
import { chooseDevice } from "../../src/device/open.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { canFollow } from "../../src/session/generation/open.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";

const ROOM = { totalBytes: 2 ** 40, freeBytes: 2 ** 40 };
const cpu = { ...chooseDevice("cpu", "fp32"), ...ROOM };
const cuda = { ...cpu, kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0 } as const;

test("those where the id of a token decides its row of the embedding alone, and rows go by rows", () => {
  const ofModel = (family: string, device: typeof cpu | typeof cuda = cuda) => {
    const spec = { ...gpuFamilies, ...sparseGpuFamilies }[family]!;
    return planGeneration(spec, device, [], [{ adapter: -1, prompt: 3, limit: 4 }], "dense");
  };
  const lora = { rank: 3, scale: 1, targets: ["q_proj"] as const };
  const adapters = [{ ...lora, targets: [...lora.targets] }];
  expect(canFollow(ofModel("llama"), adapters)).toBe(true);
  expect(canFollow(ofModel("llama"), [{ ...adapters[0]!, tables: { head: { tokens: [3] } } }])).toBe(false);
  expect(canFollow(ofModel("llama", cpu), adapters)).toBe(false);
  expect(canFollow(ofModel("qwen3_5"), adapters)).toBe(false); // keeps states
  expect(canFollow(ofModel("gemma4"), adapters)).toBe(false); // has a table of its layers in the machine's memory
});

// Which stages may be given a pass of generation before the last one is answered.

import { expect, test } from "bun:test";
import { chooseDevice } from "../../src/device/open.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { planGeneration } from "../../src/plan/generation.ts";
import { isFollowed, stagesFollow } from "../../src/session/decoding/generation-engine.ts";
import { gpuFamilies, sparseGpuFamilies } from "../helpers/gpu.ts";

const ROOM = { totalBytes: 2 ** 40, freeBytes: 2 ** 40 };
const cpu = { ...chooseDevice("cpu", "fp32"), ...ROOM };
const cuda = { ...cpu, kind: "cuda", name: "a GPU", compute: "bf16", rowTile: 128, threads: 0 } as const;

test("those where the id of a token decides its row of the embedding alone, and rows go by rows", () => {
  const ofModel = (family: string, device: typeof cpu | typeof cuda = cuda) => {
    const spec = { ...gpuFamilies, ...sparseGpuFamilies }[family]!;
    return planGeneration(spec, device, [], [{ adapter: -1, prompt: 3, limit: 4 }], "dense");
  };
  expect(stagesFollow(ofModel("llama"))).toBe(true);
  expect(stagesFollow(ofModel("llama", cpu))).toBe(false);
  expect(stagesFollow(ofModel("qwen3_5"))).toBe(false); // keeps states
  expect(stagesFollow(ofModel("gemma4"))).toBe(false); // has a table of its layers in the machine's memory
  const { spec, stages } = ofModel("llama");
  expect(stagesFollow({ spec, stages: [stages[0], stages[0]] })).toBe(false); // the last one alone knows what is chosen
  const lora: PoolAdapter = { rank: 3, scale: 1, targets: ["q_proj"] };
  expect(isFollowed(lora)).toBe(true);
  for (const of of [{ head: { tokens: [3] } }, { embedding: { tokens: [3, 5] } }])
    expect(isFollowed({ ...lora, tables: of })).toBe(false);
});

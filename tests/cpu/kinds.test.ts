// The other kinds of adapters against Hugging Face PEFT on the cpu device: LoRA+ and DoRA.

import { expect, test } from "bun:test";
import { linearShape } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { readAdapter } from "../helpers/factors.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { tinySpec, tinyStage } from "../helpers/tiny.ts";

comparesWithPeft("cpu", "fp32", { loss: 1e-6, gradNorm: 5e-6, weights: 1e-5 }, true, ["kinds"]);

test("a fresh DoRA has its magnitudes before any pass: the lengths of the frozen rows", async () => {
  const spec = tinySpec();
  const adapter = { rank: 3, scale: 2, targets: ["k_proj", "down_proj"], method: "dora" } as const;
  using stage = await tinyStage(new CpuDevice(2), spec, [{ rank: 2, scale: 1, targets: ["q_proj"] }, adapter], []);
  for (const { linear, factor, layer, values } of await readAdapter(stage, 1)) {
    if (factor !== "M") continue;
    const group = linear === "k_proj" ? "qkv" : "down";
    const first = linear === "k_proj" ? linearShape(spec, "q_proj").out : 0;
    const { weight } = stage.decoder.weights.layers[layer]!.linears[group];
    const all = new Float32Array((await stage.device.read(weight as Tensor)).buffer);
    const width = weight.shape[1]!;
    expect(values.length).toBe(linearShape(spec, linear).out);
    for (const [n, value] of values.entries())
      expect(value).toBeCloseTo(Math.hypot(...all.subarray((first + n) * width, (first + n + 1) * width)), 5);
  }
});

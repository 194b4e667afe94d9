// The other kinds of adapters against Hugging Face PEFT on the cpu device: LoRA+, DoRA, VeRA, PiSSA, OLoRA, and layers that
// differ.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import type { Tensor } from "../../src/device/device.ts";
import { linearShape } from "../../src/families/linears.ts";
import { pack } from "../../src/schedule/pack.ts";
import { readAdapter } from "../helpers/factors.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { LINEARS, randomTokens, tinySpec, tinyStage } from "../helpers/tiny.ts";

comparesWithPeft("cpu", "fp32", { loss: 1e-6, gradNorm: 5e-6, weights: 1e-5 }, true, ["kinds", "vera", "principal", "places"]);

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

test("a group where a DoRA adapter has no target is computed for it as for any other", async () => {
  const spec = tinySpec();
  const adapters = [
    { rank: 2, scale: 1, targets: LINEARS },
    { rank: 3, scale: 2, targets: ["k_proj"], method: "dora" },
  ] as const;
  const device = new CpuDevice(2);
  const launched: string[] = [];
  const launch = device.launch.bind(device);
  device.launch = (kernel, args) => {
    launched.push(kernel.name);
    launch(kernel, args);
  };
  using stage = await tinyStage(device, spec, adapters, [4, 5]);
  for (const who of [[1], [0, 1], [0]]) {
    launched.length = 0;
    const rng = new Rng(3);
    const segment = (adapter: number) => ({
      ...{ adapter, samples: [randomTokens(rng, spec.vocab, 9)], seed: 1, step: 0, dropout: 0, firstRow: 0, weight: 1 },
    });
    await stage.forward(0, pack(who.map(segment), 2, device.rowTile));
    await stage.backward(0);
    const made = (kernel: string) => launched.filter((name) => name === kernel).length;
    expect([made("dora_forward"), made("dora_backward")]).toEqual(who.includes(1) ? [spec.layers, spec.layers] : [0, 0]);
  }
});

test("products of DoRA are kept; with full recomputation, only down's is made again after its layer; the same bit for bit", async () => {
  const spec = tinySpec();
  const targets = ["q_proj", "o_proj", "up_proj", "down_proj"] as const;
  const adapters = [
    { rank: 2, scale: 1, targets: LINEARS },
    { rank: 3, scale: 2, targets, method: "dora" },
  ] as const;
  const found: Float32Array[] = [];
  for (const recomputation of ["none", "selective", "full", "offload"] as const) {
    const device = new CpuDevice(2);
    let products = 0;
    const launch = device.launch.bind(device);
    device.launch = (kernel, args) => {
      if (kernel.name === "linear_forward" && "lora" in args && args.lora) products++; // the head has none
      launch(kernel, args);
    };
    using stage = await tinyStage(device, spec, adapters, [4, 5], { recomputation });
    const rng = new Rng(3);
    const segments = adapters.map((_, adapter) => ({
      ...{
        adapter,
        samples: [randomTokens(rng, spec.vocab, 9 + adapter)],
        seed: 1,
        step: 0,
        dropout: 0.1,
        firstRow: 0,
        weight: 1,
      },
    }));
    await stage.forward(0, pack(segments, 2, device.rowTile));
    products = 0;
    await stage.backward(0);
    // Full recomputation runs a layer again for other adapters of both kinds, but for the product of down, which comes after
    // it; and halves of a layer, but for those of o and down. The last layer, or half, is there yet.
    const again = { none: 0, selective: 0, full: 3 * 2 + 1, offload: 2 * 2 + 2 }[recomputation];
    const isThere = { none: 0, selective: 0, full: 3 * 2, offload: 2 }[recomputation];
    expect(products).toBe(spec.layers * again - isThere);
    for (const adapter of [0, 1]) found.push(await stage.pool.read(adapter, "grads"));
  }
  const [lora, decomposed, ...others] = found;
  expect(decomposed!.some((value) => value !== 0)).toBe(true);
  for (const [i, other] of others.entries()) expect(other).toEqual(i % 2 === 0 ? lora! : decomposed!);
});

// What is read of a GPU concurrently with the work that follows.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Tensor } from "../../src/device/device.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("a snapshot", () => {
  test("is what earlier work left, whatever later work does; several at once each have their own", async () => {
    using device = new CudaDevice("bf16");
    const rng = new Rng(8);
    const sizes = [3, 4_194_304, 9_000_001, 64];
    const tensors = sizes.map((n): Tensor => ({ ptr: device.allocate(4 * n, "a test"), dtype: "u8", shape: [4 * n] }));
    const rounds = range(3).map(() => sizes.map((n) => Uint32Array.from({ length: n }, () => rng.bits())));
    const taken: Promise<void>[] = [];
    for (const contents of rounds) {
      for (const [i, tensor] of tensors.entries()) device.write(tensor, contents[i]!);
      const { bytes } = await device.snapshot(tensors);
      for (const tensor of tensors) device.zero(tensor);
      const check = async () => {
        for (const [i, got] of (await bytes).entries())
          expect(Buffer.from(got.buffer).equals(Buffer.from(contents[i]!.buffer))).toBe(true);
      };
      taken.push(check());
    }
    await Promise.all(taken);
    for (const tensor of tensors) expect((await device.read(tensor)).every((byte) => byte === 0)).toBe(true);
  });
});

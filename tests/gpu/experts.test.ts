// Packed experts on a GPU: what products over the values that their codes stand for give, to the bit.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { Arena } from "../../src/device/arena.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Tensor } from "../../src/device/device.ts";
import { type ExpertWeight, expertOf, NF4_BLOCK, type PackedWeight, partsOf } from "../../src/device/packed.ts";
import { CUDA_EXPERT_TILE } from "../../src/device/tile.ts";
import { NORMALISED } from "../../src/families/moe.ts";
import { expertsBackward, expertsForward } from "../../src/ops/experts.ts";
import { randomFill } from "../../src/ops/fill.ts";
import { dequantise, quantise } from "../../src/ops/packed.ts";
import { route, sortedRows, takeRoutes } from "../../src/ops/route.ts";
import { gradientsOf, writeModels } from "../helpers/mxfp4.ts";
import { needs } from "../helpers/needs.ts";
import { fillMxfp4 } from "../helpers/packed-values.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-gpu-experts-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

const [M, E, k, N, K] = [256, 5, 2, 272, 160];
const sizes = { rows: M, adapters: 1, experts: E, perToken: k };

needs("gpu")("packed experts", () => {
  test.each(["int8", "nf4", "fp8", "mxfp4"] as const)("%s", async (format) => {
    using gpu = new CudaDevice("bf16");
    gpu.reserveScratch(2 * E * N * K + 4096);
    using arena = new Arena(gpu, 16 << 20, "a test");
    const layout = { format, shape: [N, K] as const, firstRow: [0, N], ...(format === "fp8" && { isSingle: true as const }) };
    const { bytes: stride } = partsOf(layout);
    const first: PackedWeight = { ...layout, ptr: arena.tensor("u8", E * stride).ptr };
    const weight: ExpertWeight = { first, experts: E, stride };
    const from = arena.tensor("bf16", N, K);
    const absmax = arena.tensor("f32", Math.ceil((N * K) / NF4_BLOCK));
    const values = arena.tensor("bf16", E * N, K);
    for (const e of range(E)) {
      randomFill(gpu, { out: from, seed: e, scale: 0.1 });
      const packed = expertOf(weight, e) as PackedWeight;
      if (format === "mxfp4") fillMxfp4(gpu, packed, new Rng(e));
      else quantise(gpu, { from, weight: packed, linear: 0, absmax });
      const out = { ...from, ptr: values.ptr + e * N * K * 2 };
      dequantise(gpu, { weight: expertOf(weight, e) as PackedWeight, out });
    }
    const dense: ExpertWeight = { first: { ...values, shape: [N, K] }, experts: E, stride: N * K * 2 };

    const P = sortedRows(sizes, CUDA_EXPERT_TILE);
    const routes = takeRoutes((dtype, ...shape) => arena.tensor(dtype, ...shape), sizes, CUDA_EXPERT_TILE);
    const [logits, x] = [arena.tensor("bf16", M, E), arena.tensor("bf16", M, K)];
    const [bounds, tileAdapter] = [arena.tensor("i32", M, 2), arena.tensor("i32", M / 128)];
    gpu.write(bounds, Int32Array.from(range(M).flatMap(() => [0, M])));
    gpu.write(tileAdapter, Int32Array.from([0, -1]));
    randomFill(gpu, { out: logits, seed: 11, scale: 1 });
    randomFill(gpu, { out: x, seed: 12, scale: 1 });
    route(gpu, { logits, correction: null, router: NORMALISED, bounds, tileAdapter, adapters: 1, routes });

    const products = async (of: ExpertWeight): Promise<readonly Uint8Array[]> => {
      const [y, dx] = [arena.tensor("bf16", P, N), arena.tensor("bf16", P, K)];
      expertsForward(gpu, { x, gather: true, routes, weight: of, bias: null, y, lora: null });
      expertsBackward(gpu, { dy: y, gather: false, routes, weight: of, dx, lora: null });
      return Promise.all([y, dx].map((t: Tensor) => gpu.read(t)));
    };
    const [got, want] = [await products(weight), await products(dense)];
    for (const i of [0, 1]) expect(Buffer.compare(got[i]!, want[i]!)).toBe(0);
    expect(new Set(want[0]).size).toBeGreaterThan(100);
  });

  test.each(["bf16", "f32"] as const)(
    "a model's experts in mxfp4 train as their values do, bit for bit, in %s",
    async (compute) => {
      const folders = writeModels(root, compute);
      const plain = compute === "bf16" ? "bf16" : "fp32";
      const all: (readonly number[][])[] = [];
      for (const [folder, precision] of [
        [folders.packed, "auto"],
        [folders.packed, plain],
        [folders.plain, plain],
      ] as const) {
        using gpu = new CudaDevice(compute);
        all.push(await gradientsOf(gpu, folder, precision));
      }
      const [kept, opened, values] = all;
      expect(kept!.length).toBeGreaterThan(20);
      expect(kept!.every((of) => of.every(Number.isFinite) && of.some((value) => value !== 0))).toBe(true);
      expect(opened!).toEqual(values as number[][]);
      expect(kept!).toEqual(values as number[][]);
    },
  );
});

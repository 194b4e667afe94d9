// Quantised base models on a GPU: what is held is what the cpu device holds (tests/cpu/formats.test.ts), rounded to bf16.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CudaDevice } from "../../src/device/cuda.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { FORMAT_CASES, FORMATS, keepsNf4, lossOf, pathIn, writeDequantised } from "../helpers/formats.ts";
import { needs } from "../helpers/needs.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-formats-gpu-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

needs("gpu")("quantised base models", () => {
  test("nf4 is held as it is in its file, and its values are those of the file", async () => {
    using device = new CudaDevice("bf16");
    const kept = await keepsNf4(device, join(FORMATS, "nf4-nested"));
    expect(kept).toHaveLength(7);
    for (const { tensor, got, want } of kept) expect(got, tensor).toEqual(want);
  });

  test.each(Object.entries(FORMAT_CASES))("%s has the loss of the same values in f32, bit for bit", async (name, of) => {
    const path = pathIn(join(FORMATS, name), name);
    const plain = join(root, name);
    writeDequantised(plain, path, readModelSpec(path));
    const loss = await lossOf(path, of, "cuda");
    expect(Math.abs(loss - of.loss)).toBeLessThan(0.1);
    expect(await lossOf(plain, of, "cuda")).toBe(loss);
  });
});

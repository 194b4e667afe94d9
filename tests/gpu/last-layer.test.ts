// What the last layer computes, on the GPU: see the helper.

import { CudaDevice } from "../../src/device/cuda.ts";
import { gpuFamilies } from "../helpers/gpu.ts";
import { keepsLastLayer } from "../helpers/last-layer.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("the last layer", () => {
  for (const family of ["llama", "qwen3"])
    keepsLastLayer(family, () => new CudaDevice("bf16"), gpuFamilies[family]!, { rows: 1280, targets: 1280 });
});

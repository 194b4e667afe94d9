// The kernels that extend sequences a row each, and choose their next tokens: against float64 and the host's choice.

import { CudaDevice } from "../../src/device/cuda.ts";
import { choosesAsHosts } from "../helpers/choose.ts";
import { fewExpertsLikeFloat64 } from "../helpers/fewexperts.ts";
import { fewRowsLikeFloat64 } from "../helpers/fewrows.ts";
import { fusesRows } from "../helpers/fewrows-fused.ts";
import { gpuFamilies, openingGpu, sparseGpuFamilies } from "../helpers/gpu.ts";
import { needs } from "../helpers/needs.ts";
import { overlapsNothing } from "../helpers/overlapping.ts";
import { sharesPages } from "../helpers/pages.ts";

needs("gpu")("a linear layer over few rows in f32", () =>
  fewRowsLikeFloat64(() => new CudaDevice("f32"), 1e-5, true, ["dense", "nf4"]),
);
// Rounded to bf16 once: a part in 2^8 at most.
needs("gpu")("a linear layer over few rows in bf16", () =>
  fewRowsLikeFloat64(() => new CudaDevice("bf16"), 2 ** -8, true, ["dense", "int8", "nf4", "fp8"]),
);
needs("gpu")("a linear layer over few rows in bf16, as before Hopper", () =>
  fewRowsLikeFloat64(openingGpu("bf16", "ptr"), 2 ** -8, true, ["dense", "int8", "nf4", "fp8"]),
);
needs("gpu")("experts over few rows in f32", () => fewExpertsLikeFloat64(() => new CudaDevice("f32"), 1e-5, true));
needs("gpu")("experts over few rows in bf16", () =>
  fewExpertsLikeFloat64(() => new CudaDevice("bf16"), 2 ** -7, true, ["dense", "int8", "nf4", "fp8", "mxfp4"]),
);
needs("gpu")("experts over few rows in bf16, as before Hopper", () =>
  fewExpertsLikeFloat64(openingGpu("bf16", "ptr"), 2 ** -7, true, ["dense", "int8", "nf4", "fp8", "mxfp4"]),
);
needs("gpu")("linears with what follows them in f32", () => fusesRows(() => new CudaDevice("f32"), 1e-6));
needs("gpu")("linears with what follows them in bf16", () => fusesRows(() => new CudaDevice("bf16"), 2 ** -8));
needs("gpu")("layers of few rows in f32", () => overlapsNothing(() => new CudaDevice("f32"), [1, 21], 4, 4));
needs("gpu")("layers of few rows in bf16", () => overlapsNothing(() => new CudaDevice("bf16"), [1, 21, 150], 24, 12));
needs("gpu")("next tokens in f32", () => choosesAsHosts(() => new CudaDevice("f32")));
needs("gpu")("next tokens in bf16", () => choosesAsHosts(() => new CudaDevice("bf16")));

needs("gpu")("pages of the cache", () => {
  for (const compute of ["f32", "bf16"] as const)
    for (const name of ["llama", "mistral", "qwen2"])
      sharesPages(`${name} in ${compute}`, () => new CudaDevice(compute), gpuFamilies[name]!);
  for (const name of ["qwen3moe", "qwen3next"])
    sharesPages(`${name} in bf16`, () => new CudaDevice("bf16"), sparseGpuFamilies[name]!);
});

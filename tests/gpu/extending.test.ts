// The kernels that extend sequences a row each, and choose their next tokens: against float64 and the host's choice.

import { CudaDevice } from "../../src/device/cuda.ts";
import { choosesAsHosts } from "../helpers/choose.ts";
import { fewRowsLikeFloat64 } from "../helpers/fewrows.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("a linear layer over few rows in f32", () => fewRowsLikeFloat64(() => new CudaDevice("f32"), 1e-5, true));
// Rounded to bf16 once: a part in 2^8 at most.
needs("gpu")("a linear layer over few rows in bf16", () => fewRowsLikeFloat64(() => new CudaDevice("bf16"), 2 ** -8, true));
needs("gpu")("next tokens in f32", () => choosesAsHosts(() => new CudaDevice("f32")));
needs("gpu")("next tokens in bf16", () => choosesAsHosts(() => new CudaDevice("bf16")));

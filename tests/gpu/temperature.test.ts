// Log-probabilities at a temperature on a GPU: losses and slopes of completions are TRL's.

import { CudaDevice } from "../../src/device/cuda.ts";
import { temperedLikeTrl } from "../helpers/grpo-golden.ts";
import { needs } from "../helpers/needs.ts";

needs("gpu")("temperatures on the GPU", () => temperedLikeTrl(() => new CudaDevice("f32")));

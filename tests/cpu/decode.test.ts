// The kernels of generation on the cpu device.

import { describe } from "bun:test";
import { CpuDevice } from "../../src/device/cpu.ts";
import { decodesLikeFloat64 } from "../helpers/decode.ts";

describe("on the cpu", () => decodesLikeFloat64(() => new CpuDevice(2), 2e-6));

// Next tokens on the cpu device: as base/sample.ts chooses them, rows without a sequence left out.

import { describe } from "bun:test";
import { CpuDevice } from "../../src/device/cpu.ts";
import { choosesAsHosts } from "../helpers/choose.ts";

describe("on the cpu", () => choosesAsHosts(() => new CpuDevice(2)));

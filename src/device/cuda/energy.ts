// What GPUs draw, by NVML: energy as a counter of the board, so that nothing between two readings is missed, and the clock of
// the moment. A GPU that is limited by its power computes as fast as it is sparing, which no timing alone shows.

import { cudaBusId, NVML_CLOCK_SM, nvml } from "../../../ffi/nvml.ts";
import { type Functions, openSystemLibrary } from "../../../ffi/open.ts";
import { RunError } from "../../base/errors.ts";
import { log } from "../../base/log.ts";
import { sum } from "../../base/shape.ts";
import { OutParam, openExtra, openQueries } from "./driver.ts";

const LIBRARY = "libnvidia-ml.so.1";
const SUCCESS = 0;

export type EnergyReading = {
  /** Joules that all of the GPUs have drawn since their driver was loaded. */
  readonly joules: number;
  /** MHz of the multiprocessors, the mean over the GPUs. */
  readonly mhz: number;
};

export class EnergyMeter implements Disposable {
  readonly #out = new OutParam();

  private constructor(
    private readonly library: Functions<typeof nvml>,
    private readonly devices: readonly number[],
  ) {}

  /** Of these GPUs, as the CUDA driver numbers them; null where one of them, or the machine, cannot say what it draws. */
  static open(ordinals: readonly number[]): EnergyMeter | null {
    try {
      const library = openSystemLibrary(LIBRARY, nvml);
      expect("nvmlInit", library.nvmlInit_v2());
      try {
        const meter = new EnergyMeter(
          library,
          ordinals.map((ordinal) => handleOf(library, ordinal)),
        );
        meter.read();
        return meter;
      } catch (error) {
        library.nvmlShutdown();
        throw error;
      }
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      log(1, () => `energy is not measured: ${error.message}`);
      return null;
    }
  }

  read(): EnergyReading {
    const { library, devices } = this;
    const millijoules = devices.map((device) => {
      expect("nvmlDeviceGetTotalEnergyConsumption", library.nvmlDeviceGetTotalEnergyConsumption(device, this.#out.ptr));
      return this.#out.number;
    });
    const clocks = devices.map((device) => {
      expect("nvmlDeviceGetClockInfo", library.nvmlDeviceGetClockInfo(device, NVML_CLOCK_SM, this.#out.ptr));
      return this.#out.i32;
    });
    return { joules: sum(millijoules) / 1000, mhz: sum(clocks) / devices.length };
  }

  [Symbol.dispose](): void {
    this.library.nvmlShutdown();
  }
}

/** NVML and the CUDA driver number GPUs differently; the place on the bus is the same in both. */
function handleOf(library: Functions<typeof nvml>, ordinal: number): number {
  const out = new OutParam();
  expect("cuDeviceGet", openQueries().cuDeviceGet(out.ptr, ordinal));
  const place = new Uint8Array(new ArrayBuffer(32));
  expect("cuDeviceGetPCIBusId", openExtra(cudaBusId).cuDeviceGetPCIBusId(place, place.length, out.i32));
  expect("nvmlDeviceGetHandleByPciBusId", library.nvmlDeviceGetHandleByPciBusId_v2(place, out.ptr));
  return out.number;
}

function expect(call: string, status: number): void {
  if (status !== SUCCESS) throw new RunError("cuda.energy", `${call} failed with ${status}`);
}

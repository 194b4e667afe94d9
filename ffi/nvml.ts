// NVIDIA's management library, by the header's names: libnvidia-ml.so.1 comes with the driver. Only what a GPU draws is asked.

const P = "ptr";
const I = "i32";

export const nvml = {
  nvmlInit_v2: { args: [], returns: I },
  nvmlShutdown: { args: [], returns: I },
  /** a bus id as cuDeviceGetPCIBusId writes it, out device */
  nvmlDeviceGetHandleByPciBusId_v2: { args: [P, P], returns: I },
  /** device, out u64: millijoules since the driver was loaded; from Volta on */
  nvmlDeviceGetTotalEnergyConsumption: { args: [P, P], returns: I },
  /** device, NVML_CLOCK_SM, out u32: MHz */
  nvmlDeviceGetClockInfo: { args: [P, I, P], returns: I },
} as const;

/** What the CUDA driver says of a device for it. */
export const cudaBusId = {
  /** out text, its length, device */
  cuDeviceGetPCIBusId: { args: [P, I, I], returns: I },
} as const;

export const NVML_CLOCK_SM = 1;

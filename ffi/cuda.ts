// The CUDA driver's functions, by the header's names. libcuda.so.1 comes with the driver; nothing else of CUDA is needed.

const P = "ptr";
const I = "i32";

/** What is asked before a device is opened. A CUdevice is an i32, a CUresult too. */
export const cudaQueries = {
  cuInit: { args: ["u32"], returns: I },
  cuDriverGetVersion: { args: [P], returns: I },
  cuDeviceGetCount: { args: [P], returns: I },
  cuDeviceGet: { args: [P, I], returns: I },
  cuDeviceGetName: { args: [P, I, I], returns: I },
  cuDeviceTotalMem_v2: { args: [P, I], returns: I },
  cuDeviceGetAttribute: { args: [P, I, I], returns: I },
} as const;

/** CU_DEVICE_ATTRIBUTE_* */
export const attribute = { COMPUTE_CAPABILITY_MAJOR: 75, COMPUTE_CAPABILITY_MINOR: 76 } as const;

// The CUDA driver's functions, by the header's names. libcuda.so.1 comes with the driver; nothing else of CUDA is needed.
//
// A CUdevice is an i32, a CUresult too. Handles and device addresses are below 2^48, so they cross as `ptr` numbers.

const P = "ptr";
const I = "i32";
const U = "u32";
const N = "u64_fast";

/** What is asked before a device is opened. */
export const cudaQueries = {
  cuInit: { args: [U], returns: I },
  cuDriverGetVersion: { args: [P], returns: I },
  cuDeviceGetCount: { args: [P], returns: I },
  cuDeviceGet: { args: [P, I], returns: I },
  cuDeviceGetName: { args: [P, I, I], returns: I },
  cuDeviceTotalMem_v2: { args: [P, I], returns: I },
  cuDeviceGetAttribute: { args: [P, I, I], returns: I },
  /** error, out: const char ** */
  cuGetErrorName: { args: [I, P], returns: I },
  cuDevicePrimaryCtxRetain: { args: [P, I], returns: I },
  cuDevicePrimaryCtxRelease_v2: { args: [I], returns: I },
  cuCtxSetCurrent: { args: [P], returns: I },
  /** out free, out total */
  cuMemGetInfo_v2: { args: [P, P], returns: I },
} as const;

/** What an open device needs in addition. */
export const cuda = {
  ...cudaQueries,
  cuMemAlloc_v2: { args: [P, N], returns: I },
  cuMemFree_v2: { args: [P], returns: I },
  /** out address, bytes, flags */
  cuMemHostAlloc: { args: [P, N, U], returns: I },
  cuMemFreeHost: { args: [P], returns: I },
  /** address, bytes, flags */
  cuMemHostRegister_v2: { args: [P, N, U], returns: I },
  cuMemHostUnregister: { args: [P], returns: I },
  /** to, from, bytes, stream */
  cuMemcpyHtoDAsync_v2: { args: [P, P, N, P], returns: I },
  cuMemcpyDtoHAsync_v2: { args: [P, P, N, P], returns: I },
  cuMemcpyDtoDAsync_v2: { args: [P, P, N, P], returns: I },
  /** address, byte, count, stream */
  cuMemsetD8Async: { args: [P, U, N, P], returns: I },
  cuMemsetD2D8Async: { args: [P, N, U, N, N, P], returns: I },
  cuStreamCreate: { args: [P, U], returns: I },
  cuStreamDestroy_v2: { args: [P], returns: I },
  cuStreamQuery: { args: [P], returns: I },
  cuStreamSynchronize: { args: [P], returns: I },
  /** stream, event, flags */
  cuStreamWaitEvent: { args: [P, P, U], returns: I },
  cuEventCreate: { args: [P, U], returns: I },
  cuEventDestroy_v2: { args: [P], returns: I },
  /** event, stream */
  cuEventRecord: { args: [P, P], returns: I },
  cuEventQuery: { args: [P], returns: I },
  cuEventSynchronize: { args: [P], returns: I },
  /** out f32 milliseconds, from, to */
  cuEventElapsedTime: { args: [P, P, P], returns: I },
  cuModuleLoadData: { args: [P, P], returns: I },
  cuModuleGetFunction: { args: [P, P, P], returns: I },
  cuModuleUnload: { args: [P], returns: I },
  cuFuncSetAttribute: { args: [P, I, I], returns: I },
  /** function, grid x y z, block x y z, dynamic shared bytes, stream, parameters, extra */
  cuLaunchKernel: { args: [P, U, U, U, U, U, U, U, P, P, P], returns: I },
  /** stream, mode */
  cuStreamBeginCapture_v2: { args: [P, I], returns: I },
  /** stream, out graph */
  cuStreamEndCapture: { args: [P, P], returns: I },
  /** out executable graph, graph, flags */
  cuGraphInstantiateWithFlags: { args: [P, P, N], returns: I },
  cuGraphDestroy: { args: [P], returns: I },
  cuGraphExecDestroy: { args: [P], returns: I },
  /** executable graph, stream */
  cuGraphLaunch: { args: [P, P], returns: I },
} as const;

/** In drivers for CUDA 12 and later; only Hopper's kernels need it. */
export const cudaTensorMaps = {
  /** out map, element type, rank, address, sizes, strides, box, element strides, interleave, swizzle, L2 promotion, fill */
  cuTensorMapEncodeTiled: { args: [P, I, U, P, P, P, P, P, I, I, I, I], returns: I },
} as const;

/** In drivers for CUDA 12.3 and later: launches that may begin before the one before them ends, recorded as such. */
export const cudaOverlap = {
  /** launch configuration, function, parameters, extra */
  cuLaunchKernelEx: { args: [P, P, P, P], returns: I },
} as const;

/** A CUlaunchConfig: sizes of grid and block (u32), dynamic shared bytes, stream, attributes, their number. */
export const LAUNCH_CONFIG = { shared: 24, stream: 32, attributes: 40, attributeCount: 48, bytes: 56 } as const;
/** A CUlaunchAttribute: what it is (i32), then a union of 64 bytes. */
export const LAUNCH_ATTRIBUTE = { value: 8, bytes: 72 } as const;
/** CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION */
export const PROGRAMMATIC_SERIALIZATION = 6;

const Z = "u64_fast"; // a register that must be filled, so that what follows lies on the stack
const W = "u64"; // a word of a struct that is passed by value there
const HANDLE = [W, W, W, W, W, W, W, W] as const;

/** What processes need to reach each other's memory. Handles are structs of 64 bytes, passed by value (x86-64). */
export const cudaSharing = {
  /** out 16 bytes, device */
  cuDeviceGetUuid_v2: { args: [P, I], returns: I },
  /** out i32, device, the one to be reached */
  cuDeviceCanAccessPeer: { args: [P, I, I], returns: I },
  /** out handle, address */
  cuIpcGetMemHandle: { args: [P, P], returns: I },
  /** out address, flags; the handle, which comes before the flags in C */
  cuIpcOpenMemHandle_v2: { args: [P, U, Z, Z, Z, Z, ...HANDLE], returns: I },
  cuIpcCloseMemHandle: { args: [P], returns: I },
  /** out handle, event */
  cuIpcGetEventHandle: { args: [P, P], returns: I },
  /** out event; the handle */
  cuIpcOpenEventHandle: { args: [P, Z, Z, Z, Z, Z, ...HANDLE], returns: I },
} as const;

/** Bytes of a CUipcMemHandle and of a CUipcEventHandle. */
export const IPC_HANDLE_BYTES = 64;
/** CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS */
export const IPC_PEER_ACCESS = 1;
/** CU_EVENT_INTERPROCESS, which needs CU_EVENT_DISABLE_TIMING */
export const EVENT_INTERPROCESS = 4;

/** CU_DEVICE_ATTRIBUTE_* */
export const attribute = {
  MULTIPROCESSOR_COUNT: 16,
  COMPUTE_CAPABILITY_MAJOR: 75,
  COMPUTE_CAPABILITY_MINOR: 76,
} as const;

/** CU_STREAM_CAPTURE_MODE_RELAXED */
export const CAPTURE_RELAXED = 2;
/** CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES */
export const MAX_DYNAMIC_SHARED = 8;
/** CU_STREAM_NON_BLOCKING */
export const STREAM_NON_BLOCKING = 1;
/** CU_MEMHOSTREGISTER_PORTABLE */
export const MEMHOSTREGISTER_PORTABLE = 1;
/** CU_MEMHOSTALLOC_PORTABLE and CU_MEMHOSTALLOC_DEVICEMAP */
export const MEMHOSTALLOC_PORTABLE = 1;
export const MEMHOSTALLOC_DEVICEMAP = 2;
/** CU_EVENT_DISABLE_TIMING */
export const EVENT_NO_TIMING = 2;
/** CU_TENSOR_MAP_L2_PROMOTION_L2_128B */
export const L2_PROMOTION_128B = 2;

/** CUresult */
export const result = { SUCCESS: 0, OUT_OF_MEMORY: 2, NO_DEVICE: 100, NOT_READY: 600 } as const;

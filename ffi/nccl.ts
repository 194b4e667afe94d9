// NCCL's functions, by the header's names. No driver comes with it: where libnccl.so.2 is installed, it can be used.

const P = "ptr";
const I = "i32";
const N = "u64_fast";
const Z = "u64_fast"; // a register that must be filled, so that what follows lies on the stack
const W = "u64"; // a word of a struct that is passed by value there
const ID = [W, W, W, W, W, W, W, W, W, W, W, W, W, W, W, W] as const;

export const nccl = {
  /** out i32: 22803 is 2.28.3 */
  ncclGetVersion: { args: [P], returns: I },
  ncclGetErrorString: { args: [I], returns: "cstring" },
  /** out 128 bytes */
  ncclGetUniqueId: { args: [P], returns: I },
  /**
   * out communicator, number of ranks, rank; the id, which comes before the rank in C. Waits until all ranks have called it.
   */
  ncclCommInitRank: { args: [P, I, I, Z, Z, Z, ...ID], returns: I },
  /** Ends also what is under way, and what can never end. */
  ncclCommAbort: { args: [P], returns: I },
  /** address, count, type, the other rank, communicator, stream */
  ncclSend: { args: [P, N, I, I, P, P], returns: I },
  ncclRecv: { args: [P, N, I, I, P, P], returns: I },
} as const;

/** Bytes of an ncclUniqueId. */
export const NCCL_ID_BYTES = 128;
/** ncclUint8 */
export const NCCL_BYTE = 1;

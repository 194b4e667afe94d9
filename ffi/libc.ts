// The C library's functions for what Bun has no words for: memory and pipes without a name, shared by processes.

const P = "ptr";
const I = "i32";
const L = "i64_fast";

export const libc = {
  /** name, flags: a file in memory that has no place in the file system */
  memfd_create: { args: ["cstring", "u32"], returns: I },
  /** file, mode, from, bytes: takes the memory now, so that no later write fails for want of it */
  fallocate: { args: [I, I, L, L], returns: I },
  /** wanted address, bytes, protection, flags, file, from */
  mmap: { args: [P, L, I, I, I, L], returns: P },
  munmap: { args: [P, L], returns: I },
  /** out int[2]: the end to read from, the end to write to; flags */
  pipe2: { args: [P, I], returns: I },
  __errno_location: { args: [], returns: P },
} as const;

export const MFD_CLOEXEC = 1;
export const PROT_READ_WRITE = 3;
export const MAP_SHARED = 1;
/** Enters all pages at once: a fault for each would cost as much as copying it. */
export const MAP_POPULATE = 0x8000;
export const O_NONBLOCK = 0o4000;
export const O_CLOEXEC = 0o2000000;

// Memory and pipes that two processes of one machine share. They have no name: the other process opens them through /proc by
// our process number, which Linux allows to the same user alone, and nothing is left of them when both are gone, however they
// went.

import { closeSync, constants, fstatSync, openSync, readFileSync, readlinkSync, writeSync } from "node:fs";
import { libc, MAP_POPULATE, MAP_SHARED, MFD_CLOEXEC, O_CLOEXEC, O_NONBLOCK, PROT_READ_WRITE } from "../../ffi/libc.ts";
import { fixedBytes, hostView } from "../../ffi/memory.ts";
import { type Functions, openSystemLibrary } from "../../ffi/open.ts";
import { RunError, textOf } from "../base/errors.ts";
import { formatBytes } from "../base/units.ts";

/** An open file of a process, for another one to open. */
export type OpenFile = { readonly pid: number; readonly fd: number };

export type SharedMemory = Disposable & {
  readonly address: number;
  readonly bytes: number;
  /** For the other process; until `seal`. */
  readonly file: OpenFile;
  /** Once the other process has it: from now on no other process can open it. */
  readonly seal: () => void;
};

type Libc = Functions<typeof libc>;
const open = (): Libc => openSystemLibrary("libc.so.6", libc);

/** Takes zeroed memory to be shared; all of it at once. Throws a RunError, `link.memory`, where there is not enough. */
export function createShared(bytes: number): SharedMemory {
  const c = open();
  const fd = c.memfd_create("mlora", MFD_CLOEXEC);
  if (fd < 0) throw failed(c, "memfd_create");
  try {
    if (c.fallocate(fd, 0, 0, bytes) !== 0)
      throw new RunError("link.memory", `no memory to share with a neighbour: ${formatBytes(bytes)} (errno ${errno(c)})`);
    return map(c, fd, { pid: process.pid, fd }, bytes);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** The memory that another process has created. Throws a RunError, `link.shared`, where it cannot be had. */
export function openShared(file: OpenFile, bytes: number): SharedMemory {
  const fd = openFile(file, "r+", (found) => found.isFile() && found.size === bytes);
  try {
    return map(open(), fd, file, bytes);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function map(c: Libc, fd: number, file: OpenFile, bytes: number): SharedMemory {
  const address = Number(c.mmap(null, bytes, PROT_READ_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0));
  if (!(address > 0 && address < 2 ** 48)) throw failed(c, "mmap"); // -1 is 2^64 - 1
  let [isOpen, isMapped] = [true, true];
  const seal = (): void => {
    if (isOpen) closeSync(fd);
    isOpen = false;
  };
  const dispose = (): void => {
    seal();
    if (isMapped) c.munmap(address, bytes);
    isMapped = false;
  };
  return { address, bytes, file, seal, [Symbol.dispose]: dispose };
}

/** A window on host memory; it must not be used once the memory is gone. */
export const hostBytes = (address: number, bytes: number): Uint8Array => new Uint8Array(hostView(address, bytes));

/** The end of a pipe from which this process reads. */
export type PipeReader = Disposable & {
  /** The end to write to, for the other process; until `seal`. */
  readonly file: OpenFile;
  /** Once the other process has its end: the pipe now ends with that process. */
  readonly seal: () => void;
  /** What comes, in pieces of any size. Ends when no process can write any more. Call it once. */
  readonly pieces: () => AsyncIterable<Uint8Array>;
};

export function createPipe(): PipeReader {
  const c = open();
  const ends = new Int32Array(fixedBytes(8).buffer);
  if (c.pipe2(ends, O_NONBLOCK | O_CLOEXEC) !== 0) throw failed(c, "pipe2");
  const [from, to] = [ends[0]!, ends[1]!];
  let reader: ReadableStreamDefaultReader<Uint8Array> | null = null;
  let [canWrite, canRead] = [true, true];
  const seal = (): void => {
    if (canWrite) closeSync(to);
    canWrite = false;
  };
  async function* pieces(): AsyncGenerator<Uint8Array, void> {
    if (!canRead) return;
    reader = Bun.file(from).stream().getReader() as ReadableStreamDefaultReader<Uint8Array>;
    for (;;) {
      const { value, done } = await reader.read();
      if (done || !value) return;
      yield value;
    }
  }
  const dispose = (): void => {
    seal();
    if (!canRead) return;
    canRead = false;
    void (async () => {
      await reader?.cancel().catch(() => undefined);
      closeSync(from); // what Bun reads from must stay open until it has let go
    })();
  };
  return { file: { pid: process.pid, fd: to }, seal, pieces, [Symbol.dispose]: dispose };
}

/** The end of another process's pipe to which this one writes. */
export type PipeWriter = Disposable & {
  /**
   * Writes at once, all or nothing; 4096 bytes at most. False where no process reads any more. Throws a RunError, `link.pipe`.
   */
  readonly write: (bytes: Uint8Array) => boolean;
};

export const PIPE_BYTES = 4096;

/** Throws a RunError, `link.shared`, where it cannot be had. */
export function openPipe(file: OpenFile): PipeWriter {
  const fd = openFile(file, constants.O_WRONLY | O_NONBLOCK, (found) => found.isFIFO());
  let isOpen = true;
  const write = (bytes: Uint8Array): boolean => {
    try {
      if (isOpen) writeSync(fd, bytes);
      return isOpen;
    } catch (error) {
      const { code } = error as { code?: string };
      if (code === "EPIPE") return false;
      const why = code === "EAGAIN" ? "it is full" : textOf(error);
      throw new RunError("link.pipe", `cannot write to the neighbour's pipe: ${why}`, undefined, { cause: error });
    }
  };
  return {
    write,
    [Symbol.dispose]: () => {
      if (isOpen) closeSync(fd);
      isOpen = false;
    },
  };
}

function openFile(
  { pid, fd }: OpenFile,
  flags: string | number,
  isIt: (found: ReturnType<typeof fstatSync>) => boolean,
): number {
  const what = `file ${fd} of process ${pid}`;
  let found: number;
  try {
    found = openSync(`/proc/${pid}/fd/${fd}`, flags);
  } catch (error) {
    throw new RunError("link.shared", `cannot open ${what}: ${textOf(error)}`, undefined, { cause: error });
  }
  if (isIt(fstatSync(found))) return found;
  closeSync(found);
  throw new RunError("link.shared", `${what} is not what was to be shared`);
}

const failed = (c: Libc, call: string): RunError => new RunError("link.shared", `${call} failed with errno ${errno(c)}`);

const errno = (c: Libc): number => new Int32Array(hostView(c.__errno_location()!, 4))[0]!;

/**
 * Processes for which this is the same can share memory and pipes: one machine since it was booted, one user, one container.
 */
export function sharingDomain(): string {
  const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  return `${boot} ${process.getuid?.() ?? 0} ${readlinkSync("/proc/self/ns/pid")}`;
}

// What this machine gives a process: cores, instructions, memory. Read from the kernel's files, containers' limits included;
// nothing is kept, since memory changes. Tests give other files.

import { readFileSync } from "node:fs";
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import { dirname, join } from "node:path";
import { RequestError, RunError } from "./errors.ts";
import { formatBytes } from "./units.ts";

/** What x86-64-v3 code uses, by the names of /proc/cpuinfo: ffi/native is compiled for it, or for any 64-bit Arm. */
const NEEDED = ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];

/** What ffi/native/gemm.c uses, and gemm_bf16.c. */
const PRODUCTS = ["avx512f", "avx512bw", "avx512dq", "avx512vl"];
const NEEDED_BF16 = [...PRODUCTS, "avx512_bf16"];

export type Processor = {
  readonly model: string;
  /** Cores that this process may keep busy: its affinity and its container's quota count. */
  readonly cores: number;
  /** Instruction sets that the native kernels need and that are not there; they cannot run unless this is empty. */
  readonly missing: readonly string[];
  readonly avx512: boolean;
  /** Whether products are those of ffi/native/gemm.c, unless OpenBLAS's are asked for. */
  readonly hasProducts: boolean;
  /** What products in bf16 need and is not there: none on a processor that has them. */
  readonly missingBf16: readonly string[];
  /** Whether these take less time than products in f32: by AMX, or on AMD's processors (docs/measurements.md). */
  readonly prefersBf16: boolean;
};

export type Memory = {
  /** What the process could ever have: the machine's, or its container's limit. */
  readonly totalBytes: number;
  /** What it can take now, page cache that would be given up included. */
  readonly availableBytes: number;
  /** The container's limit, where there is one below the machine's memory. */
  readonly limitBytes: number | null;
};

/** A file's text, undefined where there is none. */
type Read = (path: string) => string | undefined;

export function processor(read: Read = readFile): Processor {
  const information = read("/proc/cpuinfo") ?? "";
  const [, flags = ""] = /^flags\s*:(.*)$/m.exec(information) ?? [];
  const has = new Set(flags.trim().split(/\s+/));
  const isArm = process.arch === "arm64";
  const missing = isArm ? [] : process.arch === "x64" ? NEEDED.filter((name) => !has.has(name)) : ["x86-64"];
  const missingBf16 = process.arch === "x64" ? NEEDED_BF16.filter((name) => !has.has(name)) : NEEDED_BF16;
  const hasProducts = process.arch === "x64" && PRODUCTS.every((name) => has.has(name));
  const isFast = has.has("amx_bf16") || /^vendor_id\s*:\s*AuthenticAMD$/m.test(information);
  const prefersBf16 = missingBf16.length === 0 && isFast;
  const model = cpus()[0]?.model.trim() || process.arch;
  return { model, cores: usableCores(read), missing, avx512: has.has("avx512f"), hasProducts, missingBf16, prefersBf16 };
}

/** With fewer addresses the runtime has none for the code that it makes, without which no library can be called. */
const LEAST_ADDRESSES = 2.75 * 2 ** 30;

/** Throws a RequestError, `machine.addresses`, where `ulimit -v` leaves this process too few to call the native kernels. */
function requireAddresses(read: Read): void {
  const [, limit] = /^Max address space\s+(\d+)\s/m.exec(read("/proc/self/limits") ?? "") ?? [];
  if (limit === undefined || Number(limit) >= LEAST_ADDRESSES) return;
  throw new RequestError(
    "machine.addresses",
    `the address space of a process is limited to ${formatBytes(Number(limit))}; mlora needs ${formatBytes(LEAST_ADDRESSES)}, and the model's memory on top`,
    "raise the limit (ulimit -v unlimited); to bound memory give it to a container or a control group",
  );
}

/**
 * The processor, if the native kernels can run on it; else a RunError, `machine.processor`. Without this they would end the
 * process. Throws a RequestError: `machine.addresses` where they could not be called, `machine.files` where the kernel's files
 * say nothing (no /proc, no file left to open): a guess would choose other products, with other bits.
 */
export function requireProcessor(read: Read = readFile): Processor {
  requireAddresses(read);
  if (read("/proc/cpuinfo") === undefined)
    throw new RequestError(
      "machine.files",
      "/proc/cpuinfo cannot be read, which says what the processor can do",
      "mount /proc, or raise the limit of open files (ulimit -n)",
    );
  const found = processor(read);
  if (found.missing.length === 0) return found;
  throw new RunError(
    "machine.processor",
    `the processor, ${found.model}, lacks ${found.missing.join(", ")}`,
    "mlora's kernels need x86-64-v3 (Intel since Haswell, AMD since Excavator: 2013 and 2015) or 64-bit Arm",
  );
}

/** Threads beyond these would only take turns. */
export function usableCores(read: Read = readFile): number {
  const quota = Math.min(...controlGroups("cpu", read).map((group) => cpuQuota(group, read)), Number.POSITIVE_INFINITY);
  return Math.max(1, Math.min(availableParallelism(), Math.ceil(quota)));
}

/** Whether this process was started with SIGHUP ignored, as nohup does: then the loss of its terminal is nothing to it. */
export function ignoresHangup(read: Read = readFile): boolean {
  const [, ignored = "0"] = /^SigIgn:\s+([0-9a-f]+)$/m.exec(read("/proc/self/status") ?? "") ?? [];
  return (BigInt(`0x${ignored}`) & 1n) === 1n; // SIGHUP is signal 1
}

export function memory(read: Read = readFile): Memory {
  const [, kib] = /^MemAvailable:\s+(\d+) kB$/m.exec(read("/proc/meminfo") ?? "") ?? [];
  const available = kib === undefined ? freemem() : Number(kib) * 1024;
  const groups = controlGroups("memory", read).map((group) => memoryOfGroup(group, read));
  const limit = Math.min(...groups.map(({ limit }) => limit), Number.POSITIVE_INFINITY);
  return {
    totalBytes: Math.min(totalmem(), limit),
    availableBytes: Math.max(0, Math.min(available, ...groups.map(({ limit, used }) => limit - used))),
    limitBytes: limit < totalmem() ? limit : null,
  };
}

type Group = { readonly folder: string; readonly version: 1 | 2 };

/** The folders of this process's control group and of all above it, where limits may stand. */
function controlGroups(controller: "cpu" | "memory", read: Read): Group[] {
  const root = "/sys/fs/cgroup";
  return (read("/proc/self/cgroup") ?? "").split("\n").flatMap((line): Group[] => {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (path === undefined || controllers === undefined) return [];
    if (controllers === "") return upwards(path).map((at) => ({ folder: join(root, at), version: 2 }));
    if (!controllers.split(",").includes(controller)) return [];
    // Inside a container the path may be the host's, and what is mounted is its own group: the last of `upwards`.
    return upwards(path).map((at) => ({ folder: join(root, controller, at), version: 1 }));
  });
}

const upwards = (path: string): string[] => (path === "/" ? ["/"] : [path, ...upwards(dirname(path))]);

function memoryOfGroup({ folder, version }: Group, read: Read): { readonly limit: number; readonly used: number } {
  const number = (file: string): number => Number(read(join(folder, file))?.trim() || Number.NaN); // "max" is NaN, too
  const limit = number(version === 2 ? "memory.max" : "memory.limit_in_bytes");
  if (Number.isNaN(limit)) return { limit: Number.POSITIVE_INFINITY, used: 0 };
  const used = number(version === 2 ? "memory.current" : "memory.usage_in_bytes");
  const [, cached = "0"] = /^(?:total_)?inactive_file (\d+)$/m.exec(read(join(folder, "memory.stat")) ?? "") ?? [];
  return { limit, used: Math.max(0, (used || 0) - Number(cached)) };
}

/** In cores; infinite for none. */
function cpuQuota({ folder, version }: Group, read: Read): number {
  const [quota, period] =
    version === 2
      ? (read(join(folder, "cpu.max")) ?? "max 1").trim().split(" ").map(Number)
      : ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map((file) => Number(read(join(folder, file)) ?? Number.NaN));
  return quota! > 0 && period! > 0 ? quota! / period! : Number.POSITIVE_INFINITY;
}

function readFile(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

// What identifies a process, written down so that another process can tell whether it still runs.

import { readFileSync, readlinkSync } from "node:fs";
import { hostname } from "node:os";

/**
 * This process: told from others that had or will have its number by its start, its machine's boot and the namespace that
 * numbers processes there (a container has one of its own), and the machine.
 */
export const stampOfProcess = (): string => `${process.pid} ${startOf(process.pid)} ${bootId()}.${namespace()} ${hostname()}`;

/** The process of a stamp, where it runs, or may run on another machine; null where it is over, or the text is no stamp. */
export function processOf(stamp: string): { readonly pid: number; readonly elsewhere: string | null } | null {
  const [, number, start, boot, host] = /^([1-9]\d*) (\d+) (\S+) (\S+)$/.exec(stamp) ?? [];
  if (host === undefined) return null;
  const pid = Number(number);
  if (host !== hostname()) return { pid, elsewhere: host }; // whether it still runs cannot be seen from here
  const [booted, numbered] = boot!.split(".");
  if (booted === bootId() && numbered !== undefined && numbered !== namespace())
    return { pid, elsewhere: `${host}, in another container` }; // its number is another process's here
  const runs = booted === bootId() && isRunning(pid) && [start, UNSEEN].includes(startOf(pid) ?? "over");
  return runs ? { pid, elsewhere: null } : null;
}

/** Whether there is a process of this number, this user's or another user's. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as { code?: string }).code === "EPERM";
  }
}

function bootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "unknown";
  }
}

/** The inode of the PID namespace. */
function namespace(): string {
  try {
    return /\d+/.exec(readlinkSync("/proc/self/ns/pid"))![0];
  } catch {
    return "0";
  }
}

const UNSEEN = "0";

/** When a process started, in ticks since the boot, where that can be seen. A zombie has no start: it is over. */
function startOf(pid: number): string | null {
  try {
    const [state, ...rest] = readFileSync(`/proc/${pid}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ");
    return state === "Z" ? null : rest[18]!;
  } catch {
    return UNSEEN;
  }
}

// Disks that are small, or may be read only, where this machine lets a test mount one.

import { mkdirSync, mkdtempSync, rmSync, statfsSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

function call(...command: readonly string[]): void {
  const { exitCode, stderr } = Bun.spawnSync([...command]);
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
}

const mounted = (folder: string): Disposable => ({ [Symbol.dispose]: () => call("umount", "--lazy", folder) });

/** A disk of that many KiB in the place of a folder. Disposing takes it away, with all that is on it. */
export function smallDisk(folder: string, kib: number): Disposable {
  mkdirSync(folder, { recursive: true });
  call("mount", "-t", "tmpfs", "-o", `size=${kib}k`, "tmpfs", folder);
  return mounted(folder);
}

/** From now on nothing can be written by a path through this folder; files that are open are as before. */
export function readOnly(folder: string): Disposable {
  const aside = `${folder}-read-only`;
  mkdirSync(aside);
  call("mount", "--bind", folder, aside);
  using _ = mounted(aside);
  call("mount", "-o", "remount,bind,ro", aside); // where nothing is written at this moment
  call("mount", "--bind", aside, folder);
  return mounted(folder);
}

/** Lets a file grow until that many bytes are left on its disk. */
export function leaveFree(ballast: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(join(ballast, ".."));
  const more = bavail * bsize - bytes;
  if (more <= 0) return;
  try {
    writeFileSync(ballast, new Uint8Array(more), { flag: "a" });
  } catch (error) {
    if ((error as { code?: string }).code !== "ENOSPC") throw error; // another wrote meanwhile: it is full
  }
}

/** Whether this process may mount at all. */
export function canMount(): boolean {
  const folder = mkdtempSync(join(tmpdir(), "mlora-disk-"));
  try {
    using _ = smallDisk(folder, 4);
    return true;
  } catch {
    return false;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

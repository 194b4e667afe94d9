// A folder that is written next to its final place and renamed when it is whole. What a killed process left of one is known by
// a stamp, which says which process wrote it and the names of what it writes: these are removed, and nothing else.

import { mkdirSync, readdirSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import * as v from "valibot";
import { isTemporary, makeFolder, syncFolder } from "../base/atomic.ts";
import { processOf, stampOfProcess } from "../base/process.ts";
import { readOwn, removeFolder } from "./owned.ts";

const STAMP = ".mlora-export";
const stamp = v.pipe(v.string(), v.parseJson(), v.object({ process: v.string(), names: v.array(v.string()) }));

/** `finish` gives it its final name, onto an empty folder, too; `discard` removes what was written in it, if it can. */
export type Part = { readonly path: string; readonly finish: () => void; readonly discard: () => void };

/**
 * Makes a folder for files of these `names`, some in folders within it, that becomes `whole`; first removes those of processes
 * that are gone. Throws what the system refuses.
 */
export function openPart(whole: string, names: readonly string[]): Part {
  const folder = dirname(whole);
  makeFolder(folder);
  for (const name of readdirSync(folder)) if (isPart(name, basename(whole))) removeStale(join(folder, name));
  const path = `${whole}.${process.pid}.part`;
  mkdirSync(path);
  const discard = () => {
    try {
      removePart(path, names);
    } catch {
      // the fault that is reported is the first one
    }
  };
  try {
    writeFileSync(join(path, STAMP), JSON.stringify({ process: stampOfProcess(), names }), { flag: "wx" });
  } catch (error) {
    discard();
    throw error;
  }
  const finish = () => {
    unlinkSync(join(path, STAMP));
    syncFolder(path);
    renameSync(path, whole);
    syncFolder(folder);
  };
  return { path, finish, discard };
}

const isPart = (name: string, of: string): boolean =>
  name.startsWith(`${of}.`) && /^\d+\.part$/.test(name.slice(of.length + 1));

function removeStale(path: string): void {
  const { success, output } = v.safeParse(stamp, readOwn(path, STAMP));
  if (success && processOf(output.process) === null) removePart(path, output.names);
}

/** The stamp goes last: without it the others are not known for ours. */
function removePart(path: string, names: readonly string[]): void {
  const isOf = (all: readonly string[]) => (name: string) => all.some((of) => name === of || isTemporary(name, of));
  const inside = Map.groupBy(
    names.filter((name) => /^[\w-]+\/[^/]+$/.test(name)),
    (name) => dirname(name),
  );
  for (const [folder, own] of inside) removeFolder(join(path, folder), isOf(own.map((name) => basename(name))));
  removeFolder(path, isOf(names));
  removeFolder(path, (name) => name === STAMP);
}

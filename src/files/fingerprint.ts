// Tells one base model, or saved adapter, from another by every byte of its files. Read once: the hash of a file's bytes is
// kept in the cache folder with its size, times and inode.

import { closeSync, fstatSync, readdirSync, readFileSync, readSync } from "node:fs";
import { join, resolve } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { wallTime } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { openToRead } from "../base/open-file.ts";
import { modelPlace, partsOf } from "./modelpath.ts";

const SHELF = "fingerprints";
const PIECE = 16 << 20;
/** A file that was changed just now may be changed again within one tick of its times. */
const SETTLED_MS = 3_000;

const entry = v.object({ stamp: v.string(), hash: v.string() });

/**
 * Of the model at `path`: its configuration and the bytes of its safetensors files and their index, or those of its GGUF files.
 * Throws a RequestError, `model.changing`, where a file is written meanwhile.
 */
export function modelFingerprint(path: string): string {
  const { folder, gguf } = modelPlace(path);
  if (gguf !== null) {
    const parts = partsOf(gguf).map(fileFingerprint);
    return new Bun.CryptoHasher("sha256").update(`gguf ${parts.join(";")}`).digest("hex");
  }
  const hasher = new Bun.CryptoHasher("sha256").update(readFileSync(join(folder, "config.json")));
  const names = readdirSync(folder).filter((name) => /\.safetensors(\.index\.json)?$/.test(name));
  for (const name of names.sort()) hasher.update(`${name} ${fileFingerprint(join(folder, name))};`);
  return hasher.digest("hex");
}

/** Of the adapter in `folder`, as PEFT writes one. Throws as the above. */
export function adapterFingerprint(folder: string): string {
  const hasher = new Bun.CryptoHasher("sha256").update(readFileSync(join(folder, "adapter_config.json")));
  return hasher.update(fileFingerprint(join(folder, "adapter_model.safetensors"))).digest("hex");
}

/** Of a file's bytes, from the cache where it is the same file. */
export function fileFingerprint(path: string): string {
  const fd = openToRead(path);
  try {
    const before = stampOf(fd);
    const known = recall(path, before);
    if (known !== null) return known;
    const hash = hashOf(fd);
    if (stampOf(fd) !== before)
      throw new RequestError("model.changing", `${path} is written while it is read`, "wait until it is whole");
    if (wallTime() - Math.max(fstatSync(fd).mtimeMs, fstatSync(fd).ctimeMs) > SETTLED_MS) remember(path, before, hash);
    return hash;
  } finally {
    closeSync(fd);
  }
}

/** What stays the same as long as a file is not changed. */
function stampOf(fd: number): string {
  const { dev, ino, size, mtimeNs, ctimeNs } = fstatSync(fd, { bigint: true });
  return `${dev} ${ino} ${size} ${mtimeNs} ${ctimeNs}`;
}

/** xxHash64 of each piece, and SHA-256 of these: 20 times as fast as SHA-256 alone, and made to find changes, not forgeries. */
function hashOf(fd: number): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const buffer = new Uint8Array(new ArrayBuffer(PIECE));
  for (let at = 0; ; ) {
    let got = 0;
    for (let more = 1; got < PIECE && more > 0; got += more) more = readSync(fd, buffer, got, PIECE - got, at + got);
    if (got === 0) return hasher.digest("hex");
    hasher.update(`${got} ${Bun.hash.xxHash64(buffer.subarray(0, got))};`);
    at += got;
  }
}

const nameOf = (path: string): string => `${new Bun.CryptoHasher("sha256").update(resolve(path)).digest("hex")}.json`;

function recall(path: string, stamp: string): string | null {
  for (const cache of cacheFolders())
    try {
      const found = v.parse(entry, JSON.parse(readFileSync(join(ownFolder(cache, SHELF), nameOf(path)), "utf8")));
      if (found.stamp === stamp) return found.hash;
    } catch {
      // not there, or not to be used: the file is read again
    }
  return null;
}

function remember(path: string, stamp: string, hash: string): void {
  for (const cache of cacheFolders())
    try {
      writeFileAtomic(join(ownFolder(cache, SHELF), nameOf(path)), `${JSON.stringify({ stamp, hash })}\n`, 0o600);
      return;
    } catch {
      // a full disk, say: the next folder may do, and else the file is read again
    }
}

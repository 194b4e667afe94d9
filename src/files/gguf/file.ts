// A GGUF is written, read back and compared before it has its name.

import { renameSync } from "node:fs";
import { basename, join } from "node:path";
import { replaceFile } from "../../base/atomic.ts";
import { RunError } from "../../base/errors.ts";
import type { GgufKeys } from "../../families/gguf.ts";
import { openPart } from "../part.ts";
import { encodeValues } from "../stored.ts";
import { openGguf } from "./header.ts";
import type { GgufTensor } from "./merged.ts";
import { bytesOfEntry, ggufHeader, padding } from "./writer.ts";

export type GgufContent = {
  readonly keys: GgufKeys;
  /** Keys with their values as another GGUF has them. */
  readonly raw?: readonly Uint8Array[];
  readonly tensors: readonly GgufTensor[];
};

/**
 * Writes `path`, which is whole or absent; returns its bytes. Throws what the system refuses, and a RunError, `export.values`
 * or `export.verify`.
 */
export function writeGguf(path: string, content: GgufContent): number {
  const name = basename(path);
  const part = openPart(path, [name]);
  try {
    const written = join(part.path, name);
    const bytes = writeTo(written, content);
    renameSync(written, path);
    part.discard();
    return bytes;
  } catch (error) {
    part.discard();
    throw error;
  }
}

function writeTo(path: string, { keys, raw, tensors }: GgufContent): number {
  const header = ggufHeader(keys, tensors, raw);
  const digests: string[] = [];
  let size = 0;
  replaceFile(path, (write) => {
    const put = (bytes: Uint8Array) => {
      size += bytes.length;
      write(bytes);
    };
    put(header);
    for (const tensor of tensors) {
      const hash = new Bun.CryptoHasher("sha256");
      for (const values of tensor.pieces()) {
        const bytes = encodeValues(tensor.type, values);
        checkRange(tensor, values);
        hash.update(bytes);
        put(bytes);
      }
      put(padding(bytesOfEntry(tensor)));
      digests.push(hash.digest("hex"));
    }
  });
  verify(path, tensors, digests);
  return size;
}

const MOST_F16 = 65504;

/** f16 has no values above. */
function checkRange({ name, type }: GgufTensor, values: Float32Array): void {
  if (type !== "F16") return;
  const large = values.find((value) => Math.abs(value) > MOST_F16);
  if (large !== undefined)
    throw new RunError("export.values", `${name} has a value of ${large}, and f16 ends at ${MOST_F16}`, "take --gguf bf16");
}

const CHUNK = 1 << 22;

/** Reads the file from its header on, and compares each tensor's bytes with those that were made. */
function verify(path: string, tensors: readonly GgufTensor[], digests: readonly string[]): void {
  using file = openGguf(path);
  for (const [i, { name, type, shape }] of tensors.entries()) {
    const found = file.tensors.get(name);
    const hash = new Bun.CryptoHasher("sha256");
    for (let at = 0; at < (found?.bytes ?? 0); at += CHUNK) {
      const bytes = new Uint8Array(new ArrayBuffer(Math.min(CHUNK, found!.bytes! - at)));
      file.read(bytes, found!.offset + at);
      hash.update(bytes);
    }
    if (found?.type !== type || `${found.shape}` !== `${shape}` || hash.digest("hex") !== digests[i])
      throw new RunError(
        "export.verify",
        `${path}: ${name} was written and reads otherwise`,
        "nothing of it is kept; check the disk",
      );
  }
}

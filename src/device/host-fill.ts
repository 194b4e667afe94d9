// Fills memory of the machine from what reads it, as files are read.

import { hostView } from "../../ffi/memory.ts";

/** Bytes at a time: what reads may convert as many, and a window on memory has an end. */
const PIECE = 64 << 20;

/** `read` puts the bytes from `from` on into what it is given. */
export function fillHost(ptr: number, bytes: number, read: (into: Uint8Array, from: number) => void): void {
  for (let from = 0; from < bytes; from += PIECE)
    read(new Uint8Array(hostView(ptr + from, Math.min(PIECE, bytes - from))), from);
}

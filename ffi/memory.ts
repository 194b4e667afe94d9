// Host memory by address: the only place next to open.ts that knows bun:ffi.

import { CString, type Pointer, ptr, toArrayBuffer } from "bun:ffi";

/** A window on native memory, without a copy. The caller owns the memory and must not use the window after releasing it. */
export const hostView = (address: number, bytes: number): ArrayBuffer =>
  bytes === 0 ? new ArrayBuffer(0) : toArrayBuffer(address as Pointer, 0, bytes);

/** The address of a view's first byte. The view must stay reachable while C may use it, and must not be a small pooled one. */
export const addressOf = (view: ArrayBufferView): number => ptr(view as NodeJS.TypedArray);

/** A C string that lives as long as the process. */
export const textAt = (address: number): string => new CString(address as Pointer).toString();

/** A buffer of its own, which does not move and whose address may be handed to C while it is reachable. */
export const fixedBytes = (bytes: number): Uint8Array<ArrayBuffer> => new Uint8Array(new ArrayBuffer(Math.max(bytes, 256)));

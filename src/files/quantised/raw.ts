// A tensor as its safetensors file has it.

import type { TensorEntry } from "../safetensors.ts";
import type { ReadBytes } from "../tensor.ts";

export type RawTensor = TensorEntry & {
  /** Reads its bytes from byte `from` on. */
  readonly read: ReadBytes;
};

/** All of its bytes. */
export function bytesOfTensor({ bytes, read }: RawTensor): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(new ArrayBuffer(bytes));
  read(all, 0);
  return all;
}

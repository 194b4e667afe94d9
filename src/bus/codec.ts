// Messages as bytes: msgpack, with the typed arrays of this program carried exactly. A decoded array owns its memory, aligned,
// and nothing of the bytes that it came in. Numbers are doubles: -0 arrives as 0, all else as it was.

import { decode as decodeBytes, ExtensionCodec, encode as encodeBytes } from "@msgpack/msgpack";

/** Little-endian, as on every machine that mlora runs on. */
const ARRAYS = [Uint8Array, Int32Array, Float32Array, Float64Array] as const;

const extensions = new ExtensionCodec();
for (const [type, Kind] of ARRAYS.entries())
  extensions.register({
    type,
    encode: (value) => (value instanceof Kind ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength) : null),
    decode: (bytes) => {
      if (bytes.byteLength % Kind.BYTES_PER_ELEMENT !== 0) throw new Error(`${bytes.byteLength} bytes are no ${Kind.name}`);
      const own = new ArrayBuffer(bytes.byteLength);
      new Uint8Array(own).set(bytes);
      return new Kind(own);
    },
  });

/** What is undefined in an object is left out. */
export const encode = (value: unknown): Uint8Array => encodeBytes(value, { extensionCodec: extensions, ignoreUndefined: true });

/** Throws where the bytes are not one whole message. */
export const decode = (bytes: Uint8Array): unknown => decodeBytes(bytes, { extensionCodec: extensions });

// The copy of parameters that kernels read, where they read bf16.

/** Round to nearest even, as the optimizer's kernel writes the copy. */
export function toBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(bits.length);
  for (let i = 0; i < out.length; i++) {
    const u = bits[i]!; // Uint16Array.from with a function takes 30 times as long
    out[i] = (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
  return out;
}

// The C ABI of ffi/native/stored.c and encode.c, as data: how the weights in files become numbers, and numbers weights.
// Arguments: src/files/stored.ts.

const P = "ptr";
const I = "i32";
const L = "i64_fast";

export const stored = {
  native_threads: { args: [I, I], returns: I },
  stored_values: { args: [I, P, L, I, P], returns: "void" },
  stored_encode: { args: [I, P, L, P], returns: "void" },
  stored_fp8: { args: [P, P, L, L, L, L, L, I, P], returns: "void" },
  stored_codes4: { args: [P, P, P, L, L, L, I, P], returns: "void" },
  packed_tables: { args: [P, P], returns: "void" },
} as const;

// The C ABI of ffi/native/factors.c, as data: values of adapters between files and devices. Arguments: src/files/factors.ts.

const P = "ptr";
const I = "i32";
const U = "u32";
const L = "i64_fast";

export const factors = {
  factor_turn: { args: [I, P, P, I, I, I], returns: "void" },
  factor_uniform: { args: [I, P, L, U, "f64"], returns: "void" },
  factor_normal: { args: [I, P, L, U, "f64"], returns: "void" },
  factor_bf16: { args: [I, P, P, L], returns: "void" },
  factor_finite: { args: [I, P, L], returns: I },
} as const;

// The C ABI of ffi/native/*.c, as data: the cpu device's kernels. Arguments are documented there and in src/device/kernels.ts.

const P = "ptr";
const I = "i32";
const U = "u32";
const F = "f32";
const L = "i64_fast";

export const native = {
  native_threads: { args: [I, I], returns: I },
  native_allocate: { args: [L], returns: P },
  native_release: { args: [P], returns: "void" },
  native_copy: { args: [P, P, L], returns: "void" },
  native_zero: { args: [P, L], returns: "void" },
  product: { args: [P, I, I, I, I, I, F, P, I, P, I, F, P, I], returns: "void" },
  product_packed: { args: [P, I, I, I, I, P, I, P, F, P, I, P], returns: "void" },
  packed_quantise: { args: [P, I, P, P], returns: "void" },
  packed_expand: { args: [P, L, L, L, L, P, L], returns: "void" },
  packed_dequantise: { args: [P, P], returns: "void" },
  rows_gather: { args: [P, P, P, I, I], returns: "void" },
  rows_scatter: { args: [P, P, P, I, I], returns: "void" },
  pool_forward: { args: [P, P, P, I, I], returns: "void" },
  pool_backward: { args: [P, P, P, I, I], returns: "void" },
  rmsnorm_forward: { args: [P, P, P, P, P, I, I, F], returns: "void" },
  rmsnorm_backward: { args: [P, P, P, P, P, P, I, I], returns: "void" },
  swiglu_forward: { args: [P, P, I, I], returns: "void" },
  swiglu_backward: { args: [P, P, P, I, I], returns: "void" },
  geglu_forward: { args: [P, I, P, I, P, I, I], returns: "void" },
  geglu_backward: { args: [P, P, I, P, I, P, I, P, I, I, I], returns: "void" },
  rope_forward: { args: [P, P, P, P, P, P, P, I, I, I, I, F], returns: "void" },
  rope_backward: { args: [P, P, P, P, P, P, P, I, I, I, I, F], returns: "void" },
  attention_forward: { args: [P, P, P, I, I, P, P, I, I, I, I, F, I, F], returns: "void" },
  attention_backward: { args: [P, P, P, I, I, P, P, P, P, P, I, I, I, I, F, I, F], returns: "void" },
  cache_write: { args: [P, P, P, I, I, I, I], returns: "void" },
  attention_decode: { args: [P, P, P, P, I, I, I, I, F, I, F], returns: "void" },
  dropout: { args: [P, P, P, I, I, U, U, U, U, F, I], returns: "void" },
  xent: { args: [P, P, P, P, P, I, I, I, I], returns: "void" },
  grad_norm: { args: [P, I, I], returns: F },
  adamw_step: { args: [P, P, P, P, L, P, P], returns: "void" },
  dora_norm: { args: [P, P, P, I, I, I, I, F, P, P, P, I], returns: "void" },
  dora_forward: { args: [P, P, P, P, P, I, I], returns: "void" },
  dora_backward: { args: [P, P, P, P, P, I, I], returns: "void" },
  vera_expand: { args: [P, P, I, I, I, I, U, F], returns: "void" },
  vera_reduce: { args: [P, P, I, I, I, I, U, F], returns: "void" },
  random_fill: { args: [P, L, U, F], returns: "void" },
} as const;

// The C of ffi/native/factors.c: values of adapters between files and devices. Any thread may call it. Arguments: that file.

import { assetPath } from "../src/base/assets.ts";
import { requireProcessor, usableCores } from "../src/base/machine.ts";
import { openLibrary } from "./open.ts";

const P = "ptr";
const I = "i32";
const U = "u32";
const L = "i64_fast";

const factors = {
  factor_turn: { args: [I, P, P, I, I, I], returns: "void" },
  factor_uniform: { args: [I, P, L, U, "f64"], returns: "void" },
  factor_normal: { args: [I, P, L, U, "f64"], returns: "void" },
  factor_bf16: { args: [I, P, P, L], returns: "void" },
  factor_finite: { args: [I, P, L], returns: I },
  factor_copy: { args: [I, P, P, L], returns: "void" },
  factor_in_file: { args: [I, I, L, P, L], returns: I },
  file_begin_sync: { args: [I, L, L], returns: "void" },
} as const;

const open = () => {
  requireProcessor(); // before an instruction that it may lack
  return { c: openLibrary(assetPath("libmlora.so"), factors), threads: usableCores() };
};
let opened: ReturnType<typeof open> | undefined;

/** Its functions, and how many threads a call may take. */
export const native = () => {
  opened ??= open();
  return opened;
};

// Our C, ffi/native/*.c. Whoever calls a function of it declares its ABI; what was declared is opened at once.

import { assetPath } from "../src/base/assets.ts";
import { type Functions, openLibrary, type SymbolTable } from "./open.ts";

export const P = "ptr";
export const I = "i32";
export const U = "u32";
export const F = "f32";
export const L = "i64_fast";

type Declared = { readonly symbols: SymbolTable; readonly functions: Record<string, unknown> };

let declared: Declared[] = [];

/** Functions of libmlora.so, there once it is open: `openNative`. */
export function native<const S extends SymbolTable>(symbols: S): Functions<S> {
  const functions = {};
  declared.push({ symbols, functions });
  return functions as Functions<S>;
}

/** Opens what has been declared since it was last called. Throws what `openLibrary` throws. */
export function openNative(): void {
  if (declared.length === 0) return;
  const opened = openLibrary(assetPath("libmlora.so"), Object.assign({}, ...declared.map(({ symbols }) => symbols)));
  for (const { symbols, functions } of declared) for (const name in symbols) functions[name] = opened[name];
  declared = [];
}

/** What is no kernel: memory, threads, and the product that several kernels are made of. */
export const base = native({
  native_threads: { args: [I, I], returns: I },
  native_gemm: { args: [I], returns: I },
  native_bf16: { args: [], returns: I },
  native_amx: { args: [I], returns: I },
  native_allocate: { args: [L], returns: P },
  native_populate: { args: [P, L, I], returns: "void" },
  native_is_populated: { args: [P], returns: I },
  native_release: { args: [P], returns: "void" },
  native_copy: { args: [P, P, L], returns: "void" },
  native_zero: { args: [P, L], returns: "void" },
  product: { args: [P, I, I, I, I, I, F, P, I, P, I, F, P, I], returns: "void" },
});

// The one place that opens a shared library. Knows paths and symbol tables; what the calls mean is for those who ask.

import { dlopen, type FFIFunction } from "bun:ffi";
import { existsSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import { RunError, textOf } from "../src/base/errors.ts";

/**
 * What crosses the boundary, by the names of bun:ffi. A `ptr` is an address as a number (below 2^53: the fastest way), or a
 * view that C uses only until it returns; it must be a view of its own ArrayBuffer, since small pooled ones move.
 */
type Crossing = {
  ptr: { takes: number | ArrayBufferView | null; gives: number | null };
  cstring: { takes: string | ArrayBufferView; gives: string | null };
  bool: { takes: boolean; gives: boolean };
  i32: { takes: number; gives: number };
  u32: { takes: number; gives: number };
  f32: { takes: number; gives: number };
  f64: { takes: number; gives: number };
  i64: { takes: number | bigint; gives: bigint };
  u64: { takes: number | bigint; gives: bigint };
  i64_fast: { takes: number | bigint; gives: number | bigint };
  u64_fast: { takes: number | bigint; gives: number | bigint };
  void: { takes: never; gives: undefined };
};
type Crossable = keyof Crossing;

/** A C function as data. */
export type Signature = { readonly args: readonly Crossable[]; readonly returns: Crossable };
export type SymbolTable = Readonly<Record<string, Signature>>;

type Takes<A extends readonly Crossable[]> = { -readonly [I in keyof A]: Crossing[A[I]]["takes"] };
/** A library's functions; `ptr` is a function's own address, for C that calls it. */
export type Functions<S extends SymbolTable> = {
  readonly [K in keyof S]: ((...args: Takes<S[K]["args"]>) => Crossing[S[K]["returns"]]["gives"]) & { readonly ptr: number };
};

/**
 * Opens the library at an absolute path and returns its functions; it stays open as long as the process. Every symbol of the
 * table must be there. Throws a RunError, `ffi.library` or `ffi.symbol`.
 */
export function openLibrary<const S extends SymbolTable>(path: string, symbols: S): Functions<S> {
  if (!isAbsolute(path)) throw new RunError("ffi.library", `the path of a library must be absolute: ${path}`);
  return open(path, symbols);
}

/**
 * Opens a library of the system by the name that its loader knows: "libcuda.so.1". Throws as `openLibrary` does.
 *
 * Where the loader does not find the name, Bun looks in the current folder, so a folder of data could bring a library along: a
 * file of that name there is refused.
 */
export function openSystemLibrary<const S extends SymbolTable>(name: string, symbols: S): Functions<S> {
  if (!/^[\w+-]+(\.[\w+-]+)*$/.test(name)) throw new RunError("ffi.library", `not the bare name of a library: ${name}`);
  const here = join(process.cwd(), name);
  if (existsSync(here))
    throw new RunError(
      "ffi.library",
      `${here} could be opened in place of the system's ${name}`,
      "run mlora in another folder",
    );
  return open(name, symbols);
}

function open<S extends SymbolTable>(library: string, symbols: S): Functions<S> {
  try {
    return dlopen(library, symbols as Record<string, FFIFunction>).symbols as unknown as Functions<S>;
  } catch (error) {
    const [, symbol] = /^Symbol "(.+?)" not found/.exec(textOf(error)) ?? [];
    if (symbol !== undefined)
      throw new RunError("ffi.symbol", `${library} has no function '${symbol}'`, "it is of another version than mlora needs", {
        cause: error,
      });
    throw new RunError("ffi.library", `cannot open ${library}: ${reasonOf(error)}`, undefined, { cause: error });
  }
}

/** The loader's own words, without the paths that stand before them. */
const reasonOf = (error: unknown): string =>
  textOf(error).replace(/^Failed to open library "[^"]*": (\S+: )?(cannot open shared object file: )?/, "");

/**
 * Sets variables in the environment that C code reads; undefined takes one away. Bun's process.env is a copy that C never sees,
 * and libraries read their variables when they are opened: call this before.
 */
export function setNativeEnvironment(variables: Readonly<Record<string, string | undefined>>): void {
  const libc = openSystemLibrary("libc.so.6", {
    setenv: { args: ["cstring", "cstring", "i32"], returns: "i32" },
    unsetenv: { args: ["cstring"], returns: "i32" },
  });
  for (const [name, value] of Object.entries(variables))
    if (value === undefined) libc.unsetenv(name);
    else libc.setenv(name, value, 1);
}

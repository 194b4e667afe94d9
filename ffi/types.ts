// The types of our symbol tables: what may be passed, what comes back. Handles and addresses are plain numbers.

type Argument = "ptr" | "cstring" | "i32" | "u32" | "f32" | "i64_fast" | "u64_fast";
type Result = "void" | "ptr" | "i32" | "u32" | "f32" | "u64_fast";
export type SymbolTable = Readonly<Record<string, { readonly args: readonly Argument[]; readonly returns: Result }>>;

/** A `ptr` is an address, or the memory of a view for this one call. */
type Passed<A> = A extends "ptr" ? number | ArrayBufferView | null : A extends "cstring" ? string : number;
type Arguments<A extends readonly Argument[]> = { -readonly [I in keyof A]: Passed<A[I]> };

export type Functions<S extends SymbolTable> = {
  readonly [K in keyof S]: ((...args: Arguments<S[K]["args"]>) => S[K]["returns"] extends "void" ? void : number) & {
    /** The function's own address. */
    readonly ptr: number;
  };
};

// The compiled kernels as kernels/triton/compile.py describes them, and how one is found. Reads assets; touches no GPU.

import { readAsset } from "../../base/assets.ts";
import { invariant, RunError } from "../../base/errors.ts";

/**
 * Which compilation of the kernels a device takes: `tma` is bf16 for Hopper, `ptr` bf16 for any GPU from Ampere on, `f32` for
 * tests and for fp32 runs on any GPU.
 */
export type Kind = "tma" | "ptr" | "f32";

/**
 * A parameter of a PTX entry. A `desc` is a tensor descriptor by value (128 bytes), then its shape (i32), then its strides
 * (i64).
 */
export type Param =
  | { readonly name: string; readonly type: "ptr" | "i32" | "i64" | "f32" }
  | {
      readonly name: string;
      readonly type: "desc";
      readonly block: readonly number[];
      readonly swizzle: number;
      readonly elem: number;
    };

export type KernelEntry = {
  readonly name: string;
  readonly kinds: readonly Kind[];
  readonly arch: string;
  readonly entry: string;
  readonly ptx: string;
  /** Machine code by the major compute capability that runs it. */
  readonly cubins: Readonly<Record<string, string>>;
  readonly constants: Readonly<Record<string, number>>;
  readonly launch: Readonly<Record<string, number>>;
  readonly params: readonly Param[];
  readonly hidden: readonly string[];
  readonly threads: number;
  readonly shared: number;
};

type Manifest = { readonly format: number; readonly kernels: readonly KernelEntry[] };

const FORMAT = 1;

/** All compiled kernels. Throws a RunError, `asset.missing`, where this mlora was built without them. */
export function readManifest(): readonly KernelEntry[] {
  const manifest: Manifest = JSON.parse(new TextDecoder().decode(readAsset("kernels/manifest.json")));
  if (manifest.format !== FORMAT)
    throw new RunError(
      "cuda.kernels",
      `the kernels are of format ${manifest.format}, not ${FORMAT}`,
      "build them again with scripts/kernels",
    );
  return manifest.kernels;
}

/** Constants that tell apart the variants of one kernel. */
export type Choice = Readonly<Record<string, number>>;

/** The entries of a kernel for a kind with these constants; that there is none is our bug. */
export function findEntries(entries: readonly KernelEntry[], kind: Kind, name: string, choice: Choice): readonly KernelEntry[] {
  const found = entries.filter(
    (entry) =>
      entry.name === name &&
      entry.kinds.includes(kind) &&
      Object.entries(choice).every(([constant, value]) => entry.constants[constant] === value),
  );
  invariant(found.length > 0, `no kernel ${name} of kind ${kind} was compiled for ${JSON.stringify(choice)}`);
  return found;
}

/** The padded ranks that the low-rank kernels of a kind were compiled for, ascending. */
export function paddedRanks(entries: readonly KernelEntry[], kind: Kind): readonly number[] {
  const down = entries.filter(({ name, kinds }) => name === "lora_down" && kinds.includes(kind));
  return [...new Set(down.map(({ constants }) => constants["R"]!))].sort((a, b) => a - b);
}

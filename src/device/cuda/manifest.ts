// The GPU kernels as kernels/triton/compile.py lists them. Reads assets; touches no GPU.

import { readAsset } from "../../base/assets.ts";
import { RunError } from "../../base/errors.ts";

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

/** A row of kernels/triton/variants.py, compiled or not. */
export type KernelRow = {
  readonly name: string;
  readonly kinds: readonly Kind[];
  readonly arch: string;
  readonly dtype: string;
  readonly constants: Readonly<Record<string, number>>;
  readonly launch: Readonly<Record<string, number>>;
  /** Hash of all that the row is compiled from: no two rows have the same. */
  readonly source_sha256: string;
};

/** A row with its compiled code. */
export type KernelEntry = KernelRow & {
  readonly entry: string;
  readonly ptx: string;
  /** Machine code by the major compute capability that runs it. */
  readonly cubins: Readonly<Record<string, string>>;
  readonly params: readonly Param[];
  readonly hidden: readonly string[];
  readonly threads: number;
  readonly shared: number;
};

export type Manifest = { readonly format: number; readonly kernels: readonly (KernelRow | KernelEntry)[] };

const MANIFEST = "kernels/manifest.json";
const FORMAT = 2;

/** Scripts may compile a part of the rows: those that one recipe launches. */
export const isCompiled = (row: KernelRow | KernelEntry): row is KernelEntry => "ptx" in row;

/** All rows. Throws a RunError, `asset.missing`, where this mlora was built without kernels. */
export const readManifest = (): Manifest["kernels"] => parseManifest(new TextDecoder().decode(readAsset(MANIFEST)));

export function parseManifest(text: string): Manifest["kernels"] {
  const manifest: Manifest = JSON.parse(text);
  if (manifest.format !== FORMAT)
    throw new RunError(
      "cuda.kernels",
      `the kernels are of format ${manifest.format}, not ${FORMAT}`,
      "build them again with scripts/kernels",
    );
  return manifest.kernels;
}

/** The files of a row that a launch may load. PTX for sm_90a runs on capability 9.0 alone, which takes the machine code. */
export const filesOf = ({ arch, ptx, cubins }: KernelEntry): readonly string[] => [
  ...(arch === "sm_90a" ? [] : [ptx]),
  ...Object.values(cubins),
];

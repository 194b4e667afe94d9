// Which variant of a kernel a launch takes: chosen by kind and constants among all rows of the manifest, compiled or not, so
// that compiling a part never changes the choice.

import { invariant } from "../../base/errors.ts";
import type { KernelEntry, KernelRow, Kind } from "./manifest.ts";

/** Constants that tell apart the variants of one kernel. */
export type Choice = Readonly<Record<string, number>>;

export class Variant {
  constructor(readonly row: KernelRow | KernelEntry) {}

  /** A constant of the variant, or a number that its launch needs. */
  constant(name: string): number {
    const value = this.row.constants[name] ?? this.row.launch[name];
    if (value === undefined) throw new Error(`${this.row.name} has no constant ${name}`); // no text where there is one
    return value;
  }
}

/** "lora_down bf16 sm_90a CB=16 BM=64 BK=64", as kernels/triton/compile.py names it. */
export const titleOf = ({ name, dtype, arch, constants }: KernelRow): string =>
  [name, dtype, arch, ...Object.entries(constants).map(([constant, value]) => `${constant}=${value}`)].join(" ");

export class VariantSet {
  readonly #variants: readonly Variant[];
  readonly #chosen = new Map<string, readonly Variant[]>();

  constructor(
    rows: readonly (KernelRow | KernelEntry)[],
    readonly kind: Kind,
  ) {
    this.#variants = rows.filter(({ kinds }) => kinds.includes(kind)).map((row) => new Variant(row));
  }

  /** The variants of a kernel with these constants, in the order of the manifest; that there is none is a bug. */
  all(name: string, choice: Choice = {}): readonly Variant[] {
    let key = name;
    for (const constant in choice) key += `,${constant}=${choice[constant]}`;
    const known = this.#chosen.get(key);
    if (known) return known;
    const wanted = Object.entries(choice);
    const found = this.#variants.filter(
      ({ row }) => row.name === name && wanted.every(([constant, value]) => row.constants[constant] === value),
    );
    invariant(found.length > 0, `no kernel ${name} of kind ${this.kind} has the constants ${JSON.stringify(choice)}`);
    this.#chosen.set(key, found);
    return found;
  }

  /** The one variant with these constants. */
  one(name: string, choice?: Choice): Variant {
    const [variant, ...more] = this.all(name, choice);
    if (!variant || more.length > 0)
      throw new Error(`${more.length + 1} kernels ${name} have the constants ${JSON.stringify(choice)}`);
    return variant;
  }
}

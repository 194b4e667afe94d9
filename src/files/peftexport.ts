// The export of an adapter: written as PEFT would from the blocks of its stages, read back, and compared.

import { RunError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { type AdapterLayout, type FactorTensor, factorPlace, factorsIn, type LayerRange } from "../methods/layout.ts";
import { samePlaces } from "../methods/placement.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import { sameBits } from "./convert.ts";
import { takeFactor } from "./factors.ts";
import { type PeftAdapter, readPeftAdapter, writePeftAdapter } from "./peft.ts";

/** An adapter of a run, as plain data. */
export type PeftExport = {
  /** For messages. */
  readonly name: string;
  readonly spec: ModelSpec;
  readonly peft: Omit<PeftAdapter, "shared"> & { readonly scale: number };
  readonly stages: readonly {
    readonly layerRange: LayerRange;
    readonly layout: AdapterLayout;
    readonly params: Float32Array;
  }[];
};

/**
 * Writes `folder`, and reads it back: all numbers must be equal, bit for bit. Throws a RunError where they are not, and what
 * writing and reading throw.
 */
export function exportPeft(folder: string, { name, spec, peft, stages }: PeftExport): void {
  const { targets, method = "lora", places, rank, settings = {} } = peft;
  const factors = stages.flatMap(({ layerRange, layout, params }) =>
    factorsIn(layerRange, targets, method, places).map((at): FactorTensor => {
      const values = takeFactor(params, factorPlace(spec, layout, at.layer, at.linear, at.factor));
      return { ...at, values };
    }),
  );
  const shared = DEFINITIONS[method].peft.shared?.tensors(spec, targets, rank, settings) ?? [];
  writePeftAdapter(folder, spec, { ...peft, shared }, factors);
  verifyPeft(folder, { name, spec, peft }, factors);
}

/** Throws a RunError, `export.mismatch`, where a folder does not hold exactly these factors. */
export function verifyPeft(
  folder: string,
  { name, spec, peft }: Omit<PeftExport, "stages">,
  factors: readonly FactorTensor[],
): void {
  const saved = readPeftAdapter(folder, spec);
  const isSame =
    samePlaces(saved, peft, spec.layers) &&
    factors.every(({ layer, linear, factor, values }) => sameBits(saved.tensor(layer, linear, factor), values));
  if (isSame) return;
  throw new RunError(
    "export.mismatch",
    `adapter '${name}': what is in ${folder} is not what was trained`,
    "the disk or the file is not to be trusted; nothing else was overwritten",
  );
}

// The export of an adapter: written as PEFT would from the blocks of its stages, read back, and compared.

import { RunError } from "../base/errors.ts";
import type { LayerRange } from "../base/layers.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isOfExperts } from "../families/linears.ts";
import { type FactorTensor, factorPlace, layoutAdapter, tensorsIn } from "../methods/layout.ts";
import { samePlaces } from "../methods/placement.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import { areFinite, sameBits } from "./convert.ts";
import { takeFactor } from "./factors.ts";
import { type PeftAdapter, peftName, readPeftAdapter, writePeftAdapter } from "./peft.ts";
import type { SafetensorsFile } from "./safetensors.ts";

/** An adapter of a run, as plain data. */
export type PeftExport = {
  /** For messages. */
  readonly name: string;
  readonly spec: ModelSpec;
  readonly peft: Omit<PeftAdapter, "shared"> & { readonly scale: number };
  readonly stages: readonly {
    readonly layerRange: LayerRange;
    readonly params: Float32Array;
  }[];
};

/** The factors in the blocks of an adapter, in the order of the layers. */
export const exportedFactors = ({ spec, peft, stages }: PeftExport): FactorTensor[] =>
  stages.flatMap(({ layerRange, params }) => {
    const layout = layoutAdapter(spec, layerRange, peft);
    return tensorsIn(spec, layerRange, peft).map((at) => {
      const values = takeFactor(params, factorPlace(spec, layout, at.layer, at.linear, at.factor));
      return { ...at, values };
    });
  });

/**
 * Writes `folder`, and reads it back: all numbers must be equal, bit for bit. Throws a RunError where they are not, and what
 * writing and reading throw.
 */
export function exportPeft(folder: string, of: PeftExport): void {
  const { name, spec, peft } = of;
  const { targets, method = "lora", rank, settings = {} } = peft;
  const factors = exportedFactors(of);
  const odd = factors.find(({ values }) => !areFinite(values));
  if (odd)
    throw new RunError(
      "peft.values",
      `adapter '${name}': ${peftName(spec, odd)} has values that are no finite numbers`,
      "lower the learning rate or set max_grad_norm",
    );
  const shared = DEFINITIONS[method].peft.shared?.tensors(spec, targets, rank, settings) ?? [];
  writePeftAdapter(folder, spec, { ...peft, shared }, factors);
  verifyPeft(folder, of, factors);
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array) => new Uint8Array(buffer, byteOffset, byteLength);

/** Throws a RunError, `export.mismatch`, where a folder does not hold exactly these factors. */
export function verifyPeft(
  folder: string,
  { name, spec, peft }: Omit<PeftExport, "stages">,
  factors: readonly FactorTensor[],
): void {
  const { method = "lora" } = peft;
  const values = new Map(factors.map((of) => [peftName(spec, of), of.values]));
  let isSame = true;
  /** Tensors that the file has otherwise are read: those of experts and tables, and where A and B follow from others. */
  const isOtherwise =
    DEFINITIONS[method].peft.shared !== undefined || peft.tables !== undefined || peft.targets.some(isOfExperts);
  const look = isOtherwise
    ? null
    : (name: string, file: SafetensorsFile) => {
        const expected = values.get(name);
        isSame &&= expected !== undefined && file.holds(name, bytesOf(expected));
      };
  const saved = readPeftAdapter(folder, spec, null, null, look);
  isSame &&= samePlaces(saved, peft, spec.layers);
  if (!look) isSame &&= factors.every((of) => sameBits(saved.tensor(of.layer, of.linear, of.factor), of.values));
  if (isSame) return;
  throw new RunError(
    "export.mismatch",
    `adapter '${name}': what is in ${folder} is not what was trained`,
    "the disk or the file is not to be trusted; nothing else was overwritten",
  );
}

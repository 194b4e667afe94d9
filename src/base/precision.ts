// How exactly the frozen base is held and computed with: the words of recipes, and what they mean for its linear weights.
//
// int8, nf4, fp8 and nf4-fp8 quantise the linear weights of the decoder layers alone; embedding, head, norms and biases stay as
// they are. bf16 is a device's compute type on GPUs; a CPU computes in f32 and multiplies linears, experts and head in bf16.

import { RequestError } from "./errors.ts";

export const PRECISIONS = ["auto", "fp32", "bf16", "prefer-bf16", "int8", "nf4", "fp8", "nf4-fp8"] as const;
export type Precision = (typeof PRECISIONS)[number];

/**
 * How a device holds a linear weight: `dense` as it computes, or packed: `bf16` where it computes in f32, `bf16-products` the
 * same, multiplied with rows that are rounded to bf16, `int8` scaled by row, `nf4` (4-bit NormalFloat of QLoRA), `fp8` (e4m3,
 * scaled by row), `nf4-fp8` (nf4 that is rounded to e4m3 for each product), `mxfp4` (e2m1, a power of two for 32 values, of
 * files that have experts so).
 */
export const WEIGHT_FORMATS = ["dense", "bf16", "bf16-products", "int8", "nf4", "fp8", "nf4-fp8", "mxfp4"] as const;
export type WeightFormat = (typeof WEIGHT_FORMATS)[number];
export type PackedFormat = Exclude<WeightFormat, "dense">;

/** Whether a packed weight's values are bf16. */
export const isBf16 = (format: WeightFormat): boolean => format === "bf16" || format === "bf16-products";

/** Whether it changes what the weights are, and with them every number of a run. */
export const isQuantised = (precision: Precision): boolean => ["int8", "nf4", "fp8", "nf4-fp8"].includes(precision);

/** Whether linears are multiplied in e4m3, with both factors rounded to it. */
export const multipliesInFp8 = (format: WeightFormat | Precision): boolean => format === "fp8" || format === "nf4-fp8";

/** A format that linear weights of a model's files are in, so that holding them so loses nothing. */
export type ExactWeights = {
  readonly format: "bf16" | "nf4" | null;
  /** The embedding and an output head of its own are in bf16, too. */
  readonly tables?: boolean;
  /** Groups of linears that are not wholly in it, as "layer.group". */
  readonly others: readonly string[];
  /** The experts are in mxfp4. */
  readonly isMxfp4?: boolean;
};

/** How a device holds linear weights: in one format, but for groups that are dense. */
export type HeldWeights = {
  readonly format: WeightFormat;
  readonly denseGroups?: readonly string[];
  /** Of experts; left out: as linears are. */
  readonly expertFormat?: WeightFormat;
  /** Of the embedding and the output head; left out: dense, or as linears that are multiplied in bf16. */
  readonly tableFormat?: "bf16";
};

/** How the embedding and the output head are held. */
export const tableFormatOf = ({ format, tableFormat }: HeldWeights): "dense" | "bf16" | "bf16-products" =>
  tableFormat ?? (format === "bf16-products" ? format : "dense");

/** How the weights of experts are held. */
export const expertFormatOf = ({ format, expertFormat }: HeldWeights): WeightFormat => expertFormat ?? format;

/** What is known of the devices of all stages together (device-report.ts). */
type Devices = {
  readonly compute: "f32" | "bf16";
  readonly packsTables?: boolean | undefined;
  readonly prefersBf16?: boolean | undefined;
};

/** How such devices hold the weights of a model. */
export function heldWeights(
  asked: Precision,
  { compute, packsTables = false, prefersBf16 = false }: Devices,
  exact: ExactWeights | null,
): HeldWeights & { readonly denseGroups: readonly string[] } {
  const precision = asked !== "prefer-bf16" ? asked : prefersBf16 ? "bf16" : "auto";
  const format = formatOf(precision, compute, exact?.format ?? null);
  const keeps = exact?.isMxfp4 === true && precision !== "fp32" && precision !== "bf16"; // int8 is larger, nf4 rounds again
  const experts = keeps ? "mxfp4" : precision === "nf4-fp8" ? "nf4" : null; // which are not multiplied in e4m3
  return {
    format,
    denseGroups: precision === "auto" && format !== "dense" ? exact!.others : [],
    ...(format === "bf16" && exact?.tables && packsTables ? { tableFormat: format } : {}),
    ...(experts ? { expertFormat: experts } : {}),
  };
}

function formatOf(
  precision: Exclude<Precision, "prefer-bf16">,
  compute: "f32" | "bf16",
  exact: ExactWeights["format"] | null,
): WeightFormat {
  switch (precision) {
    case "int8":
    case "nf4":
    case "fp8":
    case "nf4-fp8":
      return precision;
    case "fp32":
      return "dense";
    case "bf16":
      return compute === "f32" ? "bf16-products" : "dense";
    case "auto":
      return exact === "nf4" || (exact === "bf16" && compute === "f32") ? exact : "dense";
    default:
      return precision satisfies never;
  }
}

/** What refuses products in bf16, with an error's code; `lacking`: of which CPU, and what it lacks. */
export const withoutBf16Products = (code: string, lacking: string): RequestError =>
  new RequestError(
    code,
    `model.precision is bf16, which a CPU multiplies in by AVX512-BF16, and ${lacking}`,
    'set precision to "auto", which holds a base that is bf16 in its files so and multiplies in fp32, or to "int8" or "nf4"',
  );

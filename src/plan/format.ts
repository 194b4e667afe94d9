// Which formats can hold the linear weights of a model.

import { RequestError } from "../base/errors.ts";
import type { WeightFormat } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import { linearShapes, linearsOfModel } from "../families/linears.ts";
import type { StageDevice } from "./plan.ts";

/** Tensor cores take rows of e4m3 that are whole multiples of this many bytes. */
const FP8_ALIGN = 16;

/** Throws a RequestError, `plan.precision`, where a stage's CPU does not multiply in bf16, which the format asks of it. */
export function checkProducts(format: WeightFormat, devices: readonly StageDevice[]): void {
  if (format !== "bf16-products") return;
  const lacking = devices.findIndex(({ multipliesBf16 }) => multipliesBf16 !== true);
  if (lacking < 0) return;
  const { name, host } = devices[lacking]!;
  throw new RequestError(
    "plan.precision",
    `model.precision is bf16, which a CPU multiplies in by AVX512-BF16, and that of stage ${lacking} lacks it: ${name}${host === "" ? "" : ` on ${host}`}`,
    'set precision to "auto", which holds a base that is bf16 in its files so and multiplies in fp32, or to "int8" or "nf4"',
  );
}

/** Throws a RequestError, `plan.precision`, where a model's linears have sizes that the format cannot hold. */
export function checkFormat(format: WeightFormat, spec: ModelSpec): void {
  if (format !== "fp8") return;
  const shapes = linearsOfModel(spec).flatMap((linear) => linearShapes(spec, linear).map((shape) => [linear, shape] as const));
  for (const [linear, { out, in: width }] of shapes) {
    if (out % FP8_ALIGN === 0 && width % FP8_ALIGN === 0) continue;
    throw new RequestError(
      "plan.precision",
      `model.precision is fp8, but ${linear} of this model is [${out}, ${width}]: fp8 needs multiples of ${FP8_ALIGN}`,
      'set precision to "int8", "nf4" or "bf16"',
    );
  }
}

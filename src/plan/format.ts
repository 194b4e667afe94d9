// Which formats can hold the linear weights of a model.

import { RequestError } from "../base/errors.ts";
import { type WeightFormat, withoutBf16Products } from "../base/precision.ts";
import type { ModelSpec } from "../base/spec.ts";
import { linearShapes, linearsOfModel } from "../families/linears.ts";
import type { StageDevice } from "./plan.ts";

/** Tensor cores take rows of e4m3 that are whole multiples of this many bytes. */
const FP8_ALIGN = 16;
/** What inputs are a multiple of: a block of 64 values of nf4 lies in one row, whose scale it has. */
const INPUT_ALIGN: Readonly<Partial<Record<WeightFormat, number>>> = { fp8: FP8_ALIGN, "nf4-fp8": 64 };

/** Throws a RequestError, `plan.precision`, where a stage's CPU does not multiply in bf16, which the format asks of it. */
export function checkBf16Products(format: WeightFormat, devices: readonly StageDevice[]): void {
  if (format !== "bf16-products") return;
  const lacking = devices.findIndex(({ multipliesBf16 }) => multipliesBf16 !== true);
  if (lacking < 0) return;
  const { name, host } = devices[lacking]!;
  const place = host === "" ? "" : ` on ${host}`;
  throw withoutBf16Products("plan.precision", `that of stage ${lacking} lacks it: ${name}${place}`);
}

/** Throws a RequestError, `plan.precision`, where a model's linears have sizes that the format cannot hold. */
export function checkFormat(format: WeightFormat, spec: ModelSpec): void {
  const align = INPUT_ALIGN[format];
  const shapes = linearsOfModel(spec).flatMap((linear) => linearShapes(spec, linear).map((shape) => [linear, shape] as const));
  for (const [linear, { out, in: width }] of shapes) {
    if (format === "nf4" && (out * width) % 2 !== 0)
      throw new RequestError(
        "plan.precision",
        `model.precision is nf4, but ${linear} of this model is [${out}, ${width}]: nf4 holds two values in a byte`,
        'set precision to "int8" or "bf16"',
      );
    if (align === undefined) continue;
    if (out % FP8_ALIGN === 0 && width % align === 0) continue;
    throw new RequestError(
      "plan.precision",
      `model.precision is ${format}, but ${linear} of this model is [${out}, ${width}]: ${format} needs multiples of ` +
        (align === FP8_ALIGN ? `${align}` : `[${FP8_ALIGN}, ${align}]`),
      'set precision to "int8", "nf4" or "bf16"',
    );
  }
}

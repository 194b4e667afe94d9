// All methods, and what the program asks of one by its name. Nothing outside this folder compares names of methods.

import { type Linear, linearShape, type ModelSpec } from "../base/spec.ts";
import type { Definition, Factor } from "./definition.ts";
import { dora } from "./dora.ts";
import { lora } from "./lora.ts";
import { vera } from "./vera.ts";

const ALL = { lora, dora, vera } satisfies Readonly<Record<string, Definition>>;

/** What a recipe calls an adapter's method; left out: "lora". */
export type PeftMethod = keyof typeof ALL;
export const PEFT_METHODS = Object.keys(ALL) as readonly PeftMethod[];
export const DEFINITIONS: Readonly<Record<PeftMethod, Definition>> = ALL;

/** Whether it trains the lengths of the weight's rows, so that what it adds depends on the weight. */
export const hasMagnitudes = (method: PeftMethod = "lora"): boolean => DEFINITIONS[method].trained.includes("M");

/** Whether it trains vectors around random projections, from which its factors follow. */
export const hasVectors = (method: PeftMethod = "lora"): boolean => DEFINITIONS[method].trained.includes("lambda_d");

/** As what an adapter is computed that is not trained: with its vectors in its factors it is a LoRA. */
export const frozenAs = (method: PeftMethod): PeftMethod => (hasVectors(method) ? "lora" : method);

/** The method of an adapter_config.json, whose peft_type has been found to be known. */
export const methodIn = (config: Readonly<Record<string, unknown>>): PeftMethod =>
  PEFT_METHODS.find((method) => {
    const { peft_type, use_dora } = DEFINITIONS[method].peft;
    return config["peft_type"] === peft_type && (use_dora === undefined || (config["use_dora"] === true) === use_dora);
  })!;

/** The shape of a factor of a linear. */
export function factorShape(spec: ModelSpec, linear: Linear, factor: Factor, rank: number): readonly number[] {
  const { in: width, out } = linearShape(spec, linear);
  return { A: [rank, width], B: [out, rank], M: [out], lambda_d: [rank], lambda_b: [out] }[factor];
}

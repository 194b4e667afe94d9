// The flags that say how the next token is chosen.

import { RequestError } from "../base/errors.ts";
import type { Sampling } from "../base/sample.ts";
import { wholeNumber } from "./flags.ts";

export type SamplingFlags = { readonly temperature?: unknown; readonly topP?: unknown; readonly topK?: unknown };

/** The likeliest token by default; a temperature of 1 with --top-p or --top-k alone. */
export function samplingOf({ temperature, topP, topK }: SamplingFlags): Sampling {
  const chosen = temperature ?? (topP === undefined && topK === undefined ? 0 : 1);
  if (typeof chosen !== "number" || !(chosen >= 0) || chosen > 100)
    throw new RequestError("cli.flag", `--temperature is ${chosen}`, "give it a number from 0 (the likeliest token) on");
  const most = topP ?? 1;
  if (typeof most !== "number" || !(most > 0 && most <= 1))
    throw new RequestError("cli.flag", `--top-p is ${most}`, "give it a number above 0, up to 1");
  return { temperature: chosen, topP: most, topK: wholeNumber("top-k", topK ?? 0, 0) };
}

// How each method is computed, by its name.

import type { PeftMethod } from "../../methods/registry.ts";
import type { Computation } from "./computation.ts";
import { dora } from "./dora.ts";
import { vera } from "./vera.ts";

export const COMPUTATIONS = { lora: {}, dora, vera } satisfies Readonly<Record<PeftMethod, Computation>> as Readonly<
  Record<PeftMethod, Computation>
>;

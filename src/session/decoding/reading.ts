// How stages read prompts: in pieces where layers keep keys and nothing else of a sequence. On GPUs a row's numbers depend on
// no other row of its pass.

import type { ModelSpec } from "../../base/spec.ts";
import type { StagesPlan } from "../../cluster/setup.ts";
import { keepsStates } from "../../engine/generation/kv-cache.ts";
import { tiledPromptOf } from "../../plan/generation.ts";
import type { Reading } from "../../schedule/decode.ts";
import type { GenerationEngine } from "./decoding.ts";

export const readingOf = (spec: ModelSpec, kinds: readonly string[]): Reading => {
  if (keepsStates(spec)) return "whole";
  return kinds.every((kind) => kind === "cuda") ? "rows" : "pieces";
};

export const readingOn = ({ spec, stages }: StagesPlan): Pick<GenerationEngine, "reading" | "tiledPrompt"> => {
  const kinds = stages.map(({ device }) => device.kind);
  return { reading: readingOf(spec, kinds), tiledPrompt: tiledPromptOf(spec) };
};

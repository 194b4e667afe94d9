// Against Hugging Face PEFT and torch on the GPU: the goldens of the cpu device's tests, in fp32 and in bf16.

import { afterAll } from "bun:test";
import { comparesWithTorch } from "../helpers/cit.ts";
import { FAMILY_GOLDENS, loadFamilyGolden } from "../helpers/family-golden.ts";
import { GEMMA_MODELS, GOLDEN_MODELS, ON_LLAMA } from "../helpers/golden.ts";
import { needs } from "../helpers/needs.ts";
import { comparesWithPeft } from "../helpers/peft.ts";
import { tableGoldens } from "../helpers/table-golden.ts";

const families = FAMILY_GOLDENS.map(loadFamilyGolden);
afterAll(() => {
  for (const golden of families) golden[Symbol.dispose]();
});

needs("gpu")("cuda in fp32", () => {
  comparesWithPeft("cuda", "fp32", { loss: 1e-5, gradNorm: 1e-4, weights: 1e-4 }, true, [
    ...GOLDEN_MODELS,
    ...GEMMA_MODELS,
    ...ON_LLAMA,
  ]);
  comparesWithPeft("cuda", "fp32", { loss: 1e-5, gradNorm: 1e-4, weights: 1e-4 }, true, [...families, ...tableGoldens()]);
  comparesWithTorch("cuda", "fp32", { loss: 1e-4, gradNorm: 1e-3, weights: 1e-4 });
});

// bf16 keeps 8 bits: each product's output is off by up to 0.4 %, and ten steps of AdamW follow the signs of small gradients.
// Not of tiny mixtures, of which rounding the weights alone, in transformers, chooses other experts
// (docs/measurements/precision.md).
needs("gpu")("cuda in bf16", () => {
  comparesWithPeft("cuda", "bf16", { loss: 2e-2, gradNorm: 0.1, weights: 0.1 }, false);
  const latents = families.filter(({ name }) => ["youtu", "minicpm3"].includes(name));
  comparesWithPeft("cuda", "bf16", { loss: 2e-2, gradNorm: 0.1, weights: 0.1 }, false, latents);
});

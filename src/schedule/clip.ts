// Gradient clipping of one adapter by its norm over all stages, as PyTorch's clip_grad_norm_ does it.

/** The norm from sums of squares, added in the order of the layers: `parts` holds those of each stage, first stage first. */
export function gradNormOf(parts: readonly Float32Array[]): number {
  let total = 0;
  for (const part of parts) for (const square of part) total += square;
  return Math.sqrt(total);
}

/** What gradients of this norm are multiplied by. */
export const clipCoefficient = (norm: number, maxGradNorm: number | null): number =>
  maxGradNorm === null ? 1 : Math.min(1, maxGradNorm / (norm + 1e-6));

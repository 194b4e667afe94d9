// Contrastive instruction tuning as torch's autograd has it, from the loss to the weights after ten steps.

import { comparesWithTorch } from "../helpers/cit.ts";

// fp32 itself lies up to 6e-7 from float64 in any weight; small cosines' differences are divided by the temperature.
comparesWithTorch("cpu", "fp32", { loss: 1e-5, gradNorm: 1e-5, weights: 1e-5 });

// The other kinds of adapters against Hugging Face PEFT on the cpu device: LoRA+ and DoRA.

import { comparesWithPeft } from "../helpers/peft.ts";

comparesWithPeft("cpu", "fp32", { loss: 1e-6, gradNorm: 5e-6, weights: 1e-5 }, true, ["kinds"]);

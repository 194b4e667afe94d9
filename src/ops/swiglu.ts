// The gated activation of the MLP: silu(gate) * up (Shazeer 2020).

import { op } from "./op.ts";

export const swigluForward = op("swiglu_forward", { gateUp: "c M 2I", h: "c M I" });
export const swigluBackward = op("swiglu_backward", { dh: "c M I", gateUp: "c M 2I", dgateUp: "c M 2I" });

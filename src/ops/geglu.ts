// The gated activation of Gemma's MLP: gelu(gate) * up, with gelu's tanh approximation. Gate and up may be columns of wider rows.

import { op } from "./op.ts";

export const gegluForward = op("geglu_forward", { gate: "c M I", up: "c M I", h: "c M I" });
export const gegluBackward = op("geglu_backward", { dh: "c M I", gate: "c M I", up: "c M I", dgate: "c M I", dup: "c M I" });

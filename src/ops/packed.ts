// Frozen weights to fewer bits, and back to what the device computes in.

import { op } from "./op.ts";

/** Quantises one linear of a packed weight from its rows. */
export const quantise = op("quantise", { from: "c M K", weight: "w N K", absmax: "f32 B" });
/** All of a packed weight, for callers that need its values. */
export const dequantise = op("dequantise", { weight: "w N K", out: "c N K" });

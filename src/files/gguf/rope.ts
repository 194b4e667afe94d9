// Llama 3's change of the rope, which GGUF holds as factors, one for each frequency: the settings that they were computed from
// are found again, or refused.

import { RequestError } from "../../base/errors.ts";
import { llama3Factors } from "../../families/gguf.ts";
import type { JsonObject } from "../json.ts";
import { storedValues } from "../stored.ts";
import type { GgufFile } from "./header.ts";

export const ROPE_FACTORS = "rope_freqs.weight";
/** All that Meta has released: from these numbers of positions, with these bounds. */
const BOUNDS = { lowFreqFactor: 1, highFreqFactor: 4 };
const ORIGINAL = [8192, 4096, 16384, 32768, 65536, 131072];
/** Relative: factors are f32, computed in f32 or f64. */
const CLOSE = 1e-5;

/** rope_scaling of config.json, or null where the file has no factors. Throws a RequestError, `model.rope`. */
export function llama3Scaling(file: GgufFile, theta: number, headDim: number): JsonObject | null {
  const entry = file.tensors.get(ROPE_FACTORS);
  if (!entry) return null;
  const half = headDim / 2;
  const rope = { rotated: headDim, theta };
  if (entry.type !== "F32" || `${entry.shape}` !== `${[half]}`)
    throw refused(file, `is ${entry.type} [${entry.shape}], expected F32 [${half}]`);
  const [raw, values] = [new Uint8Array(4 * half), new Float32Array(half)];
  file.read(raw, entry.offset);
  storedValues("F32", raw, half, "f32", new Uint8Array(values.buffer));
  if (values.every((value) => value === 1)) return null;
  const factor = Math.fround(Math.max(...values));
  const original = ORIGINAL.find((positions) =>
    llama3Factors(rope, { factor, ...BOUNDS, originalMaxPositions: positions }).every(
      (want, i) => Math.abs(values[i]! / want - 1) < CLOSE,
    ),
  );
  if (original === undefined) throw refused(file, `has factors up to ${factor} that are not those of a Llama 3`);
  return {
    rope_type: "llama3",
    factor,
    low_freq_factor: BOUNDS.lowFreqFactor,
    high_freq_factor: BOUNDS.highFreqFactor,
    original_max_position_embeddings: original,
  };
}

const refused = (file: GgufFile, what: string): RequestError =>
  new RequestError("model.rope", `${file.path}: ${ROPE_FACTORS} ${what}`, "take the model in safetensors");

// Whether stages read short prompts row by row, next to sequences that are extended: GPUs do, of models whose layers keep keys
// and nothing else of a sequence.

import type { StagesPlan } from "../cluster/setup.ts";
import { programOf } from "../engine/program.ts";
import { extendsByRow } from "../engine/row-pass.ts";
import { wholeModel } from "../engine/weights.ts";

export const readsByRow = ({ spec, stages }: StagesPlan): boolean =>
  stages.every(({ device, sizes }) => device.kind === "cuda" && extendsByRow(programOf(spec, wholeModel(spec)), sizes, spec));

// DoRA (Liu et al. 2024): the rows of W + scale B A get lengths of their own, M, which are trained, too, and begin as those
// of W.

import { define, type Merged, type MergeRows } from "./definition.ts";
import { lora, loraConfig, lowRankKeys } from "./lora.ts";

/** The rows of W + scale B A, with the lengths M. */
function merge(of: Merged): MergeRows {
  const [add, lengths] = [lora.merge(of), of.tensor("M")];
  return (rows, first) => {
    add(rows, first);
    setLengths(rows, of.width, lengths.subarray(first, first + rows.length / of.width));
  };
}

export const dora = define({
  title: "DoRA",
  tensors: {
    ...lora.tensors,
    M: { axes: "out", initial: () => 0, peft: "lora_magnitude_vector" }, // the stage makes them the lengths of W's rows
  },
  keepsProduct: true,
  rank: 16,
  keys: lowRankKeys,
  settings: [],
  continued: lora.continued,
  beginsAsPart: false,
  peft: { ...lora.peft, isOf: (config) => config["use_dora"] === true, config: (fields) => loraConfig(fields, true) },
  merge,
});

/** Gives each row of `width` values its length; a row of zeros stays one. */
function setLengths(values: Float32Array, width: number, lengths: Float32Array): void {
  for (const [row, length] of lengths.entries()) {
    const of = values.subarray(row * width, (row + 1) * width);
    let squares = 0;
    for (let i = 0; i < width; i++) squares += of[i]! * of[i]!;
    const gain = squares > 0 ? length / Math.sqrt(squares) : 0;
    for (let i = 0; i < width; i++) of[i] = of[i]! * gain;
  }
}

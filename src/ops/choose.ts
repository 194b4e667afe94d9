// The next token of each row of logits, chosen where they are: what leaves the device is a token and two numbers.

import { shapedLogits } from "../base/logits.ts";
import { choose } from "../base/sample.ts";
import { floats, ints } from "../device/cpu/host.ts";
import type { Tensor } from "../device/device.ts";
import { cdiv, dim, op } from "./op.ts";

/** Columns of a row of settings: temperature, top-k, top-p and the chance. */
export const CHOICE_WIDTH = 4;

/**
 * The next token of each row of logits c[T, V], of which the first `classes` columns count and are shaped as xent's: by
 * settings f32[T, 4] = temperature (0: the likeliest), k (0: all), p and a chance in [0, 1) of each row, as `choose` of
 * base/sample.ts does it: the first token, in the order of falling logits and of equals the first, at which the probability so
 * far exceeds the chance. chosen f32[T, 4] = the token's bits as i32 (-1 where the logits are no finite numbers), its
 * log-probability by the logits as they are, that among those that it was drawn from, 0. Rows whose `targets` i32[T] is below
 * 0 are left out.
 */
export const chooseTokens = op<{
  logits: Tensor;
  classes: number;
  targets: Tensor;
  settings: Tensor;
  chosen: Tensor;
  scale: number;
  cap: number;
}>(
  "choose",
  { logits: "c T V", targets: "i32 T", settings: "f32 T 4", chosen: "f32 T 4" },
  {
    cpu: ({ logits, classes, targets, settings, chosen, scale, cap }) => {
      const [rows, width] = [dim(logits, 0), dim(logits, 1)];
      const [all, wanted, of] = [floats(logits), ints(targets), floats(settings)];
      const [values, tokens] = [floats(chosen), ints({ ...chosen, dtype: "i32" })];
      for (let t = 0; t < rows; t++) {
        if (wanted[t]! < 0) continue;
        const [temperature, topK, topP, uniform] = of.subarray(CHOICE_WIDTH * t, CHOICE_WIDTH * (t + 1)) as unknown as Quad;
        const row = shapedLogits(all.subarray(t * width, t * width + classes), scale, cap);
        const { token, logProb, drawnLogProb } = choose(row, { temperature, topK, topP }, uniform);
        values.set([0, logProb, drawnLogProb, 0], CHOICE_WIDTH * t);
        tokens[CHOICE_WIDTH * t] = token;
      }
    },
    cuda: ({ logits, classes, targets, settings, chosen, scale, cap }, gpu) => {
      const kernel = gpu.kernel("choose");
      const V = dim(logits, 1);
      gpu.launch(kernel, [dim(logits, 0)], { logits, targets, settings, chosen, V, classes, scale, cap });
    },
  },
);

/**
 * ids[m] = the token of chosen[source[m]] where source[m] is 0 or more, else as it is: chosen f32[T, 4] of choose, source and
 * ids i32[M].
 */
export const nextIds = op<{ chosen: Tensor; source: Tensor; ids: Tensor }>(
  "next_ids",
  { chosen: "f32 T 4", source: "i32 M", ids: "i32 M" },
  {
    cpu: ({ chosen, source, ids }) => {
      const [tokens, to] = [ints({ ...chosen, dtype: "i32" }), ints(ids)];
      for (const [m, t] of ints(source).entries()) if (t >= 0) to[m] = tokens[CHOICE_WIDTH * t]!;
    },
    cuda: ({ chosen, source, ids }, gpu) => {
      const [kernel, M] = [gpu.kernel("next_ids"), dim(ids, 0)];
      gpu.launch(kernel, [cdiv(M, kernel.constant("BLOCK"))], { chosen, source, ids, M });
    },
  },
);

type Quad = readonly [number, number, number, number];

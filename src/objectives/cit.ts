// Contrastive instruction tuning (Yan et al. 2024, section 3, as mLoRA has it): the answer's own loss under an instruction
// and under its paraphrase, and a contrast of what the model makes of them. The pooled hidden state of a row's instruction is
// to be more like its paraphrase's than like any other paraphrase of the micro-batch, and the other way round.
//
//     - sum of log pi / targets  +  w mean of (-log softmax_j(s_ij / t)[i] - log softmax_j(s_ji / t)[i]) / 2
//     s_ij = cos(u_i, v_j)
//
// w = min(lambda, generation / contrast), a number without a gradient: lambda bounds how much the contrast may count, and the
// ratio keeps it from outgrowing the answer's loss. Negatives, and so both means of w, are those of the adapter's own
// micro-batch, never another's.

import * as v from "valibot";
import { oneOf, positive } from "../base/check.ts";
import { range, sum } from "../base/shape.ts";
import { type BatchTotals, define, type RowLoss, type ScoredRow, type SettingsOf } from "./definition.ts";

const keys = {
  /** The most that the contrast counts, compared with the answer's own loss. */
  lambda: v.optional(positive(), 1000),
  temperature: v.optional(positive(), 0.05),
  /** What stands for a sequence: its last token's hidden state, or the mean of all. */
  pooling: v.optional(oneOf("last", "mean"), "last"),
};
type Cit = SettingsOf<"cit", typeof keys>;

function logSumExp(values: readonly number[]): number {
  const top = Math.max(...values);
  return top + Math.log(sum(values.map((value) => Math.exp(value - top))));
}

/** `similar` of a row: the cosines of its instruction with all paraphrases. The margin is to the most similar of the others. */
function lossOf({ lambda, temperature }: Cit, all: readonly ScoredRow[], totals: BatchTotals): RowLoss[] {
  const places = range(all.length);
  const cosines = all.map(({ similar }) => similar!);
  const z = cosines.map((row) => row.map((cosine) => cosine / temperature));
  const [byRow, byColumn] = [z.map(logSumExp), places.map((j) => logSumExp(z.map((row) => row[j]!)))];
  const contrast = places.map((i) => (byRow[i]! + byColumn[i]!) / 2 - z[i]![i]!);

  const sequences = all.flatMap(({ own, other }) => [own, other]);
  const generation = -sum(sequences.map(({ logp }) => logp)) / sum(sequences.map(({ targets }) => targets));
  const mean = sum(contrast) / all.length;
  const weight = mean > 0 ? Math.min(lambda, generation / mean) : lambda;

  const by = weight / (2 * temperature * totals.rows);
  return all.map(({ own, other }, i) => {
    const likest = Math.max(...cosines[i]!.filter((_, j) => j !== i));
    const mine = cosines[i]![i]!;
    return {
      loss: (weight * contrast[i]!) / totals.rows - (own.logp + other.logp) / totals.tokens,
      gradients: [-1 / totals.tokens, -1 / totals.tokens],
      rewards: [mine, all.length > 1 ? likest : mine], // a row alone has no others, and no margin
      contrast: {
        loss: contrast[i]! / totals.rows,
        gradients: places.map(
          (j) => by * (Math.exp(z[i]![j]! - byRow[i]!) + Math.exp(z[i]![j]! - byColumn[j]!) - (i === j ? 2 : 0)),
        ),
      },
    };
  });
}

export const cit = define({ name: "cit", keys, rows: "paraphrased", loss: lossOf, pooling: ({ pooling }) => pooling });

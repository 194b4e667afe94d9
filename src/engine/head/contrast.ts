// The contrastive segments of a packed batch on the last stage: cosines of their pooled hidden states, and their part of the
// stream's gradient. objectives/cit.ts computes the numbers; a segment has its own rows only.

import type { SequenceLoss } from "../../bus/messages.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { toBf16, toF32 } from "../../files/convert.ts";
import { cosineGradients, cosines } from "../../objectives/cosine.ts";
import { scoreSegment } from "../../objectives/loss-weights.ts";
import { isContrastive, poolingOf } from "../../objectives/registry.ts";
import type { MicroBatch, PackedPreference } from "../../schedule/micro-batch.ts";
import type { HeadBuffers } from "../layers/buffers.ts";
import type { HeadWeights } from "./head.ts";
import { addPooledGradient, type Pools, pooled } from "./pooling.ts";

/** The head and the stream of a packed batch on the last stage. */
export type Ground = {
  readonly device: Device;
  readonly head: HeadWeights;
  readonly buffers: HeadBuffers;
  readonly hidden: Tensor;
};

/** A segment: the pooled states of its instructions and of their paraphrases, and the cosine of each with each. */
type Contrast = {
  readonly preference: PackedPreference;
  readonly us: readonly Float32Array[];
  readonly vs: readonly Float32Array[];
  readonly similar: readonly (readonly number[])[];
};
export type Contrasts = { readonly pools: Pools; readonly segments: readonly Contrast[] };

/** First row and end of each sequence: padding rows have empty bounds. */
function sequenceRows(bounds: Int32Array): (readonly [first: number, end: number])[] {
  const found: (readonly [number, number])[] = [];
  for (let row = 0; row < bounds.length / 2; row++)
    if (bounds[2 * row] === row && bounds[2 * row + 1]! > row) found.push([row, bounds[2 * row + 1]!]);
  return found;
}

/** The rows that are pooled for each sequence: all, or the last, which predicts its last token. */
function poolsOf({ bounds }: MicroBatch, segments: readonly PackedPreference[]): Pools {
  const sequences = sequenceRows(bounds);
  const rows: number[] = [];
  const edges: number[] = [];
  for (const { objective, firstSequence, labels } of segments)
    for (const [first, end] of sequences.slice(firstSequence, firstSequence + 2 * labels.length)) {
      edges.push(rows.length);
      for (let row = poolingOf(objective) === "mean" ? first : end - 1; row < end; row++) rows.push(row);
      edges.push(rows.length);
    }
  return { rows: Int32Array.from(rows), bounds: Int32Array.from(edges) };
}

/** Null where the batch has no contrastive segment. */
export async function contrastsOf({ device, head, buffers, hidden }: Ground, tables: MicroBatch): Promise<Contrasts | null> {
  const mine = tables.preferences.filter(({ objective }) => isContrastive(objective));
  if (mine.length === 0) return null;
  const pools = poolsOf(tables, mine);
  const all = toF32(await device.read(pooled(device, head, buffers, hidden, pools)), device.compute);
  const width = hidden.shape[1]!;
  let at = 0;
  const next = () => all.subarray(at * width, ++at * width);
  const segments = mine.map((preference) => {
    const pairs = preference.labels.map(() => [next(), next()] as const);
    const [us, vs] = [pairs.map(([u]) => u), pairs.map(([, v]) => v)];
    return { preference, us, vs, similar: cosines(us, vs) };
  });
  return { pools, segments };
}

/** The losses, with each row's cosines at its first sequence. */
export function withSimilar(losses: readonly SequenceLoss[], contrasts: Contrasts | null): readonly SequenceLoss[] {
  const similar = new Map(
    contrasts?.segments.flatMap(({ preference, similar: of }) =>
      of.map((row, i) => [preference.firstSequence + 2 * i, row] as const),
    ),
  );
  return similar.size === 0 ? losses : losses.map((loss, i) => (similar.has(i) ? { ...loss, similar: similar.get(i)! } : loss));
}

/** Adds the contrasts' part to the gradient of the stream, c[M, H]; `losses` include the cosines. */
export function addContrastGradient(
  { device, head, buffers, hidden }: Ground,
  tables: MicroBatch,
  { pools, segments }: Contrasts,
  losses: readonly SequenceLoss[],
  grad: Tensor,
): void {
  const gradients = segments.flatMap(({ preference, us, vs }) => {
    const byCosine = scoreSegment(tables, preference, losses).found.map(({ contrast }) => contrast!.gradients);
    const by = cosineGradients(us, vs, byCosine);
    return us.flatMap((_, i) => [by.us[i]!, by.vs[i]!]);
  });
  const width = hidden.shape[1]!;
  const dy = new Float32Array(gradients.length * width);
  for (const [i, gradient] of gradients.entries()) dy.set(gradient, i * width);
  addPooledGradient(device, head, buffers, hidden, pools, device.compute === "bf16" ? toBf16(dy) : dy, grad);
}

// The output head: the weighted cross-entropy of the next token over the rows that have a target, and logits for generation.
// In supervised fine-tuning all targets have the same weight; in preferences each sequence has its own (objectives/).
//
// Only rows with a target pass the final norm and the output head, a chunk at a time, and a chunk's logits
// become their own gradient in place. Other tokens cost nothing here. An adapter's targets fill whole tiles,
// padded with rows of zeros and weight zero.

import { shapedLogits } from "../../base/logits.ts";
import { range } from "../../base/shape.ts";
import { firstRows, rowsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import type { Weight } from "../../device/packed.ts";
import { toF32 } from "../../files/convert.ts";
import { rowsGather, rowsScatter } from "../../ops/embed.ts";
import { linearBackward, linearForward } from "../../ops/linear.ts";
import { rmsnormBackward, rmsnormForward } from "../../ops/rmsnorm.ts";
import { xent } from "../../ops/xent.ts";
import { AdaptedHead } from "../adapted/adapted-tables.ts";
import type { Batch } from "../layers/batch.ts";
import type { HeadBuffers } from "../layers/buffers.ts";

/** `classes`: rows of the weight that are tokens. */
export type HeadWeights = {
  readonly norm: Tensor;
  readonly weight: Weight;
  readonly eps: number;
  readonly classes: number;
  /** Of logits: see ModelSpec. */
  readonly scale: number;
  readonly cap: number | null;
};

/**
 * Fills batch.loss f32[T] (-log p of each target) and batch.isCorrect i32[T] (1 where greedy decoding gives
 * the target). With `gradHidden` c[M, H] also the gradient of sum(weights * loss) with respect to the stream `hidden` c[M, H].
 */
export function headLoss(
  device: Device,
  head: HeadWeights,
  buffers: HeadBuffers,
  hidden: Tensor,
  batch: Batch,
  gradHidden: Tensor | null,
): void {
  if (gradHidden) device.zero(gradHidden);
  const { targets } = batch;
  if (targets === 0) return;
  const of = (t: Tensor) => firstRows(t, targets);
  const [x, h, gradH, rstd] = [of(buffers.x), of(buffers.h), of(buffers.gradH), of(buffers.rstd)];
  rowsGather(device, { x: hidden, rows: batch.targetRows, y: x });
  rmsnormForward(device, { x, weight: head.norm, residual: null, y: h, rstd, eps: head.eps });

  const chunk = buffers.logits.shape[0]!; // whole tiles, as the targets are
  for (let from = 0; from < targets; from += chunk) {
    const rows = Math.min(chunk, targets - from);
    const part = (t: Tensor) => rowsFrom(t, from, rows);
    const logits = firstRows(buffers.logits, rows);
    const adapted = batch.head && new AdaptedHead(device, batch.head, buffers, part(h), from / device.rowTile, true);
    adapted?.down();
    const lora = adapted?.product ?? null;
    linearForward(device, { x: part(h), weight: head.weight, bias: null, residual: null, y: logits, lora });
    adapted?.put(logits);
    xent(device, {
      logits,
      classes: head.classes,
      targets: part(batch.targetIds),
      weights: part(batch.weights),
      sharpness: part(batch.sharpness),
      loss: part(batch.loss),
      isCorrect: part(batch.isCorrect),
      grad: gradHidden ? 1 : 0,
      scale: head.scale,
      cap: head.cap ?? 0,
    });
    if (!gradHidden) continue;
    if (adapted) adapted.backward(logits, head.weight, part(gradH));
    else linearBackward(device, { dy: logits, weight: head.weight, dx: part(gradH), lora: null });
  }
  if (!gradHidden) return;
  rmsnormBackward(device, { dy: gradH, x, weight: head.norm, rstd, residual: null, dx: h });
  rowsScatter(device, { dy: h, rows: batch.targetRows, dx: gradHidden });
}

/**
 * Calls `got` with the logits f32[classes] of each target of a batch, in order, a row tile at a time; `targetRows` are the
 * batch's on the host.
 */
export async function eachLogits(
  device: Device,
  head: HeadWeights,
  buffers: HeadBuffers,
  hidden: Tensor,
  batch: Batch,
  targetRows: Int32Array,
  got: (target: number, logits: Float32Array) => void,
): Promise<void> {
  for (const { from, y } of logitTiles(device, head, buffers, hidden, batch)) {
    const wanted = range(y.shape[0]!).filter((row) => targetRows[from + row]! >= 0);
    await readLogits(device, head, y, wanted, (row, logits) => got(from + row, logits));
  }
}

/** Logits c[rows, V] of a batch's targets as the head has them, a row tile at a time: each is in the place of the last. */
export function* logitTiles(device: Device, head: HeadWeights, buffers: HeadBuffers, hidden: Tensor, batch: Batch) {
  const of = (t: Tensor) => firstRows(t, batch.targets);
  const [x, h, rstd] = [of(buffers.x), of(buffers.h), of(buffers.rstd)];
  rowsGather(device, { x: hidden, rows: batch.targetRows, y: x });
  rmsnormForward(device, { x, weight: head.norm, residual: null, y: h, rstd, eps: head.eps });
  const { rowTile } = device;
  const y = firstRows(buffers.logits, rowTile);
  for (let from = 0; from < batch.targets; from += rowTile) {
    const x = rowsFrom(h, from, rowTile);
    const adapted = batch.head && new AdaptedHead(device, batch.head, buffers, x, from / rowTile, false);
    adapted?.down();
    linearForward(device, { x, weight: head.weight, bias: null, residual: null, y, lora: adapted?.product ?? null });
    adapted?.put(y);
    yield { from, y };
  }
}

/** Calls `got` with the logits f32[classes] of these rows, ascending, of a tile. */
export async function readLogits(
  device: Device,
  { classes, scale, cap }: HeadWeights,
  y: Tensor,
  rows: readonly number[],
  got: (row: number, logits: Float32Array) => void,
): Promise<void> {
  if (rows.length === 0) return;
  const values = toF32(await device.read(firstRows(y, rows.at(-1)! + 1)), y.dtype);
  const width = y.shape[1]!;
  for (const row of rows) got(row, shapedLogits(values.subarray(row * width, row * width + classes), scale, cap ?? 0));
}

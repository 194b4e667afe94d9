// The next token of each sequence of a pass of generation, chosen on the device.

import { firstRows, rowsFrom } from "../../device/arena.ts";
import type { Tensor } from "../../device/device.ts";
import { CHOICE_WIDTH, chooseTokens } from "../../ops/choose.ts";
import type { Choices, GenerationBatch, NextTokens } from "../../schedule/micro-batch.ts";
import type { Ground } from "../head/contrast.ts";
import { logitTiles, readLogits } from "../head/head.ts";
import type { Batch } from "../layers/batch.ts";

/** Tables f32[T, 4] of what is chosen by, and of what is chosen (ops/choose.ts). */
export type ChoiceTables = { readonly settings: Tensor; readonly chosen: Tensor };

export const takeChoices = (take: (dtype: "f32", ...shape: number[]) => Tensor, targets: number): ChoiceTables => ({
  settings: take("f32", targets, CHOICE_WIDTH),
  chosen: take("f32", targets, CHOICE_WIDTH),
});

/** The places of the sequences among the targets of a pass: in their order. */
export const placesOf = (targetRows: Int32Array): number[] =>
  [...targetRows.keys()].filter((target) => targetRows[target]! >= 0);

export async function nextTokens(
  { device, head, buffers, hidden }: Ground,
  tables: ChoiceTables,
  batch: Batch,
  { targetRows, choices }: GenerationBatch,
): Promise<NextTokens> {
  const places = placesOf(targetRows);
  const [settings, chosen] = [firstRows(tables.settings, batch.targets), firstRows(tables.chosen, batch.targets)];
  device.write(settings, settingsOf(choices, places, batch.targets));
  const logits: Float32Array[] = [];
  const { classes, scale, cap } = head;
  for (const { from, y } of logitTiles(device, head, buffers, hidden, batch)) {
    const part = (t: Tensor) => rowsFrom(t, from, y.shape[0]!);
    const io = { logits: y, targets: part(batch.targetRows), settings: part(settings), chosen: part(chosen) };
    chooseTokens(device, { ...io, classes, scale, cap: cap ?? 0 });
    const asked = places.flatMap((target, i) =>
      choices.logits[i] && target >= from && target < from + y.shape[0]! ? [target - from] : [],
    );
    await readLogits(device, head, y, asked, (_, values) => logits.push(values));
  }
  return { ...tokensIn(await device.read(chosen), places), logits };
}

/** Of all targets; those of no sequence have zeros. */
export function settingsOf(
  { temperature, topK, topP, uniform }: Choices,
  places: readonly number[],
  targets: number,
): Float32Array {
  const settings = new Float32Array(targets * CHOICE_WIDTH);
  for (const [i, target] of places.entries())
    settings.set([temperature[i]!, topK[i]!, topP[i]!, uniform[i]!], CHOICE_WIDTH * target);
  return settings;
}

/** What the device has chosen at these places. */
export function tokensIn(
  { buffer, byteOffset, byteLength }: Uint8Array,
  places: readonly number[],
): Omit<NextTokens, "logits"> {
  const range = [buffer, byteOffset, byteLength / 4] as const;
  const [words, values] = [new Int32Array(...range), new Float32Array(...range)];
  const count = places.length;
  const found = { tokens: new Int32Array(count), logProbs: new Float32Array(count), drawnLogProbs: new Float32Array(count) };
  for (let i = 0; i < count; i++) {
    const at = CHOICE_WIDTH * places[i]!;
    found.tokens[i] = words[at]!;
    found.logProbs[i] = values[at + 1]!;
    found.drawnLogProbs[i] = values[at + 2]!;
  }
  return found;
}

// The loss of a packed batch with its gradient, where targets may have weights that depend on the losses of the whole batch.

import type { Tensor } from "../../device/device.ts";
import { lossWeights } from "../../objectives/loss-weights.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";
import type { Batch } from "../layers/batch.ts";
import { addContrastGradient, type Contrasts, contrastsOf, type Ground, withSimilar } from "./contrast.ts";
import { headLoss } from "./head.ts";
import { enqueueLosses } from "./losses.ts";

/** The losses of a batch; with `grad` c[M, H] also the gradient of the stream. */
export function lossOf({ device, head, buffers, hidden }: Ground, batch: Batch, grad: Tensor | null): void {
  headLoss(device, head, buffers, hidden, batch, grad);
}

/**
 * The weights of targets of preferences, policies and groups depend on the losses of the whole batch: these are computed
 * first, without gradients.
 */
export async function lossWithGradient(
  ground: Ground,
  { batch, tables }: { readonly batch: Batch; readonly tables: MicroBatch },
  grad: Tensor,
): Promise<Contrasts | null> {
  const isSampled = tables.policies !== undefined || tables.groups !== undefined;
  if (tables.preferences.length === 0 && !isSampled) {
    lossOf(ground, batch, grad);
    return null;
  }
  const { device } = ground;
  lossOf(ground, batch, null);
  const contrasts = await contrastsOf(ground, tables);
  const losses = withSimilar(await (await enqueueLosses(device, batch, tables.sequences, isSampled)).found, contrasts);
  device.write(batch.weights, lossWeights(tables, losses));
  lossOf(ground, batch, grad);
  if (contrasts) addContrastGradient(ground, tables, contrasts, losses, grad);
  return contrasts;
}

// A stage whose weights come from files, held as a precision says.

import type { HeldWeights } from "../../src/base/precision.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { Device } from "../../src/device/device.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor } from "../../src/engine/weights.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { writeAdapter } from "./factors.ts";
import { randomFactors, tinySizes, wholeModel } from "./tiny.ts";

export async function openTiny(
  device: Device,
  spec: ModelSpec,
  adapters: readonly PoolAdapter[],
  fill: FillTensor,
  held: HeldWeights,
): Promise<Stage> {
  const sizes = tinySizes(device, spec, adapters, { layers: spec.layers, ...held });
  const config = { spec, layerRange: wholeModel(spec), sizes };
  const stage = await Stage.open(device, config, fill, { previous: null, next: null });
  for (const [slot, adapter] of adapters.entries()) {
    await stage.admit(slot, { ...adapter, seed: slot, init: "default" });
    await writeAdapter(stage, slot, await randomFactors(stage, slot, 5 + slot));
  }
  return stage;
}

// What a stage takes when it opens besides weights and adapters: its buffers, with what is the same in all passes filled in,
// and host memory for what waits there.

import type { ModelSpec } from "../base/spec.ts";
import { Arena } from "../device/arena.ts";
import type { Device } from "../device/device.ts";
import type { StageSizes } from "./layers/buffers.ts";
import { withHostStreams } from "./layers/offloaded-streams.ts";
import { keptInputs } from "./layers/shared-layers.ts";
import { ropeTables } from "./operations/rope.ts";
import { hostStreamBytes, stageProgram, takeStageBuffers, totalBufferBytes } from "./stage-buffers.ts";
import type { StageLayers } from "./weights/weights.ts";

/** `held` is to be disposed of when nothing runs; `kept`: see decoder.ts. */
export async function openBuffers(device: Device, spec: ModelSpec, layerRange: StageLayers, sizes: StageSizes) {
  const program = stageProgram(spec, layerRange, sizes);
  const kept = keptInputs(program, sizes);
  const arena = new Arena(device, totalBufferBytes(device, spec, layerRange, sizes), "activations");
  if (sizes.blockBytes > 0) device.release(device.allocate(sizes.blockBytes, "the adapters")); // a lack shows before training
  const taken = takeStageBuffers(
    () =>
      (dtype, ...shape) =>
        arena.tensor(dtype, ...shape),
    device,
    spec,
    layerRange,
    sizes,
  );
  const bytes = hostStreamBytes(device, spec, layerRange, sizes);
  const { passes, held } = await withHostStreams(device, taken.passes, bytes, kept);
  for (const [i, rope] of spec.ropes.entries()) {
    const [tables, values] = [taken.ropes[i]!, ropeTables(rope, sizes.positions)];
    device.write(tables.cos, values.cos);
    device.write(tables.sin, values.sin);
    if (tables.queryScale) device.write(tables.queryScale, values.queryScale!);
  }
  return { program, kept, buffers: { ...taken, passes }, held: [arena, ...held] as readonly Disposable[] };
}

// The stages of a run within this process, each on a device of its own, on a local bus.

import { now, sleep } from "../base/clock.ts";
import type { Bus, StageHandlers } from "../bus/bus.ts";
import { localBus } from "../bus/local.ts";
import type { StageSetup } from "../bus/messages.ts";
import type { Device } from "../device/device.ts";
import { openDevice } from "../device/open.ts";
import { Stage } from "../engine/stage.ts";
import { originalWeights, weightsOf } from "../engine/weights/weight-source.ts";
import type { FillTensor } from "../engine/weights/weights.ts";
import { localLink } from "../link/local.ts";

/** Opens the stages, first stage first, on devices by `open`; `signal` ends that. Disposing the bus closes all. */
export async function openLocalStages(
  setups: readonly StageSetup[],
  signal?: AbortSignal,
  open: (device: StageSetup["device"]) => Device = openDevice,
): Promise<Bus> {
  await using opened = new AsyncDisposableStack();
  const devices = setups.map(({ device }) => opened.use(open(device)));
  const links = devices.slice(1).map((device, i) => localLink(devices[i]!, device, setups[i]!.capacity.slots));
  for (const ends of links) for (const end of ends) opened.use(end);
  const handlers: StageHandlers[] = [];
  for (const [i, setup] of setups.entries()) {
    const device = devices[i]!;
    using source = weightsOf(setup.model, setup.spec, device);
    const neighbours = { previous: links[i - 1]?.[1] ?? null, next: links[i]?.[0] ?? null };
    const stage = opened.use(
      await Stage.open(device, setup, attentive(source.fill, signal), neighbours, originalWeights(setup.model, setup.spec)),
    );
    handlers.push({ ...stage.handlers(), open: () => Promise.reject(new Error("a local stage is open from the start")) });
  }
  const closing = opened.move();
  return localBus(
    handlers,
    async () => {
      // Kernels of a failed request may still run; a device that fails is closed as well.
      for (const device of devices) await device.idle().catch(() => undefined);
      await closing.disposeAsync();
    },
    () => {
      for (const ends of links) for (const end of ends) end[Symbol.dispose]();
    },
  );
}

/** Interval at which signals are handled while weights are loaded, in ms. */
const LOOK_MS = 50;

/** Loads as `fill` does, and handles timers and signals between tensors. */
function attentive(fill: FillTensor, signal: AbortSignal | undefined): FillTensor {
  let looked = now();
  return async (name, into, how) => {
    const isKept = (await fill(name, into, how)) === true;
    if (now() - looked < LOOK_MS) return isKept;
    await sleep(0);
    looked = now();
    signal?.throwIfAborted();
    return isKept;
  };
}

// The stages of a run within this process, each on a device of its own, behind a local bus.

import type { Bus, StageHandlers } from "../bus/bus.ts";
import { localBus } from "../bus/local.ts";
import type { StageSetup } from "../bus/messages.ts";
import { openDevice } from "../device/open.ts";
import { localLink } from "../link/local.ts";
import { originalWeights, weightsOf } from "./base.ts";
import { Stage } from "./stage.ts";

/** Opens the stages, first stage first. Disposing the bus closes all. */
export async function openLocalStages(setups: readonly StageSetup[]): Promise<Bus> {
  await using opened = new AsyncDisposableStack();
  const devices = setups.map(({ device }) => opened.use(openDevice(device)));
  const links = devices.slice(1).map((device, i) => localLink(devices[i]!, device, setups[i]!.room.slots));
  for (const ends of links) for (const end of ends) opened.use(end);
  const handlers: StageHandlers[] = [];
  for (const [i, setup] of setups.entries()) {
    const device = devices[i]!;
    using source = weightsOf(setup.model, setup.spec, device);
    const neighbours = { previous: links[i - 1]?.[1] ?? null, next: links[i]?.[0] ?? null };
    const stage = opened.use(
      await Stage.open(device, setup, source.fill, neighbours, originalWeights(setup.model, setup.spec)),
    );
    handlers.push({ ...stage.handlers(), open: () => Promise.reject(new Error("a local stage is open from the start")) });
  }
  const closing = opened.move();
  return localBus(
    handlers,
    async () => {
      // What a failed request launched may still run; a device that fails is closed as well.
      for (const device of devices) await device.idle().catch(() => undefined);
      await closing.disposeAsync();
    },
    () => {
      for (const ends of links) for (const end of ends) end[Symbol.dispose]();
    },
  );
}

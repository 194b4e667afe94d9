// A stage in a process of its own: opens on request, with links to its neighbours, and serves until the run is over.

import { invariant, RunError } from "../base/errors.ts";
import { layersText } from "../base/layers.ts";
import { log } from "../base/log.ts";
import type { StageHandlers } from "../bus/bus.ts";
import { Gate } from "../bus/gate.ts";
import type { StageSetup } from "../bus/messages.ts";
import type { StageMembership } from "../bus/stage.ts";
import type { Device } from "../device/device.ts";
import { openDevice } from "../device/open.ts";
import { Stage } from "../engine/stage.ts";
import { originalWeights, weightsOf } from "../engine/weights/weight-source.ts";
import { openLinkOver } from "../link/open.ts";

export type ServeOptions = {
  readonly run: string;
  readonly membership: StageMembership;
  /** The base model's folder on this machine; null: the coordinator's path. */
  readonly folder: string | null;
};

/** Serves until the run is over for this stage, and closes all. Resolves to null when it is done, else to its error. */
export async function serveStage(options: ServeOptions): Promise<RunError | null> {
  const { membership } = options;
  const over = new AbortController();
  await using opened = new AsyncDisposableStack();
  const gate = new Gate();
  const handlers: Partial<StageHandlers> = gate.guard<Partial<StageHandlers>>({
    open: async ({ setup }) => {
      invariant(!handlers.forward, "a stage that is opened twice");
      const { stage, links } = await open(options, setup, over.signal, opened);
      Object.assign(handlers, gate.guard(stage.handlers()));
      return links;
    },
  });
  membership.serve(handlers);
  const reason = await membership.ended;
  over.abort(reason ?? new RunError("bus.closed", "the run has ended")); // links release what waits on them
  await gate.close();
  return reason;
}

/** Opens device, links and stage, in the order in which they need each other; `opened` disposes of them in reverse order. */
async function open(options: ServeOptions, setup: StageSetup, signal: AbortSignal, opened: AsyncDisposableStack) {
  const { membership, folder } = options;
  const device = openDevice(setup.device);
  let owner: Disposable = device;
  opened.defer(() => owner[Symbol.dispose]());
  const { first, last } = setup.layerRange;
  // Both at once: both neighbours wait for a stage in the middle.
  const [previous, next] = await Promise.all([
    first ? null : linkTo(membership.stage - 1, options, setup, device, signal),
    last ? null : linkTo(membership.stage + 1, options, setup, device, signal),
  ]);
  const links = [previous, next].filter((link) => link !== null);
  for (const { link } of links) opened.use(link);
  const model = folder !== null && "folder" in setup.model ? { folder } : setup.model;
  using source = weightsOf(model, setup.spec, device);
  const neighbours = { previous: previous?.link ?? null, next: next?.link ?? null };
  const stage = await Stage.open(device, setup, source.fill, neighbours, originalWeights(model, setup.spec));
  owner = stage;
  log(1, () => `stage ${membership.stage} has layers ${layersText(setup.layerRange)}`);
  return { stage, links: links.map(({ why }) => why) };
}

const linkTo = (
  neighbour: number,
  { run, membership }: ServeOptions,
  { link: kind, capacity }: StageSetup,
  device: Device,
  signal: AbortSignal,
) => openLinkOver(membership.links, run, { device, stage: membership.stage, neighbour, kind, capacity, signal });

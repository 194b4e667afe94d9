// Opens a link to a neighbour in another process: finds out with it which kinds should work, and takes the best that does.

import * as v from "valibot";
import { RunError, textOf } from "../base/errors.ts";
import type { Address } from "../bus/address.ts";
import { decode, encode } from "../bus/codec.ts";
import type { RunKey, SealedConnection } from "../bus/seal.ts";
import type { Device } from "../device/device.ts";
import { sharingDomain } from "../device/shared.ts";
import type { Channel } from "./channel.ts";
import { choose, describe, type Offer, offerSchema } from "./choose.ts";
import { openIpc } from "./ipc.ts";
import { LINK_KINDS, type Link, type LinkKind, type Slots } from "./link.ts";
import { openNats } from "./nats.ts";
import { openNccl } from "./nccl.ts";
import { checked, type End, type Opened, type Opening } from "./opening.ts";
import { busChannel } from "./peer-channel.ts";
import { openShm } from "./shm.ts";
import { SlotLink } from "./slots.ts";

export type LinkOptions = {
  readonly device: Device;
  /** The numbers of this stage and of the one at the other end. */
  readonly stage: number;
  readonly neighbour: number;
  readonly kind: "auto" | LinkKind;
  /** Messages that may be under way to this end, and their largest size. */
  readonly capacity: Slots;
  /** For the opening, and for NCCL's link; belongs to the link. */
  readonly channel: Channel;
  /** The bus that both are on; null where there is none. */
  readonly bus: { readonly address: Address; readonly key: RunKey; readonly run: string } | null;
  /** Ends the link, whenever; its reason is a RunError. */
  readonly signal?: AbortSignal;
  /** How long the neighbour has for each step of the opening. */
  readonly stepMs?: number;
};

/** A link, which it is and why: "shm: both run on one machine (ipc: they have no GPUs; ...)". */
export type OpenLink = { readonly link: Link; readonly why: string };

const STEP_MS = 30_000;

const OPENERS: Readonly<Partial<Record<LinkKind, (end: End) => Opening>>> = {
  ipc: openIpc,
  nccl: openNccl,
  shm: openShm,
  nats: openNats,
};

/**
 * Opens this end of a link; the neighbour does the same. Throws a RequestError, `link.kind` or `link.compute`, where what was
 * asked for cannot be, at both ends; a RunError, `link.open`, where it should work and does not.
 */
export async function openLink(options: LinkOptions): Promise<OpenLink> {
  using control = new DisposableStack();
  control.use(options.channel);
  const talk = talkTo(options);
  const offer = offerOf(options);
  const theirs = await talk(offerSchema, offer);
  const { candidates, against } = choose(offer, theirs);
  const failures: { kind: LinkKind; why: string }[] = [];
  for (const { kind, why } of candidates) {
    const opened = await attempt(kind, options, theirs.capacity, talk);
    if (typeof opened === "string") {
      failures.push({ kind, why: opened });
      continue;
    }
    const { signal, capacity: mine } = options;
    const neighbour = `stage ${options.neighbour}`;
    const link = new SlotLink({ kind, neighbour, mine, theirs: theirs.capacity, signal, ...opened });
    const others = [...failures, ...against.filter((other) => isBetter(other.kind, kind))];
    if (opened.channel === options.channel) control.move(); // it is the link's
    return { link, why: `${kind}: ${why}${others.length > 0 ? ` (${describe(others)})` : ""}` };
  }
  throw new RunError("link.open", `no link to stage ${options.neighbour} could be opened: ${describe(failures)}`);
}

/** The same, where both ends are on a bus: what they need to agree goes over it. */
export const openLinkOver = (
  connection: SealedConnection,
  run: string,
  options: Omit<LinkOptions, "channel" | "bus">,
): Promise<OpenLink> => {
  const { stage, neighbour } = options;
  const channel = busChannel(connection, { run, stage, neighbour }, "control");
  return openLink({ ...options, channel, bus: { address: connection.address, key: connection.key, run } });
};

const isBetter = (a: LinkKind, b: LinkKind): boolean => a !== "local" && LINK_KINDS.indexOf(a) < LINK_KINDS.indexOf(b);

/** Takes the three steps with the neighbour; what went wrong, at either end, as a string. */
async function attempt(kind: LinkKind, options: LinkOptions, theirs: Slots, talk: Talk): Promise<Opened | string> {
  const { device, stage, neighbour, capacity: mine } = options;
  const bus = options.bus && { ...options.bus, stage, neighbour };
  using stack = new DisposableStack();
  let opening: Opening | null = null;
  let opened: Opened | null = null;
  const steps: readonly ((said: unknown) => unknown)[] = [
    () => {
      opening = stack.use(OPENERS[kind]!({ device, first: stage < neighbour, mine, theirs, control: options.channel, bus }));
      return opening.ticket;
    },
    (ticket) => opening!.connect(ticket),
    (connected) => {
      opened = opening!.opened(connected);
      return null;
    },
  ];
  let said: unknown = null;
  for (const step of steps) {
    const mine = await tried(() => step(said));
    const answer = await talk(stepSchema, { kind, ...mine });
    if (mine.failure !== null || answer.failure !== null) {
      (opened as Opened | null)?.carrier[Symbol.dispose]();
      return mine.failure ?? `stage ${neighbour}: ${answer.failure}`;
    }
    said = answer.value;
  }
  stack.move(); // what is opened belongs to the link
  return opened!;
}

async function tried(step: () => unknown): Promise<{ readonly value: unknown; readonly failure: string | null }> {
  try {
    return { value: await step(), failure: null };
  } catch (error) {
    return { value: null, failure: textOf(error) };
  }
}

/** Says something to the neighbour and gives what it says at the same point. */
type Talk = <T>(schema: v.GenericSchema<unknown, T>, mine: T) => Promise<T>;

function talkTo({ channel, neighbour, signal, stepMs = STEP_MS }: LinkOptions): Talk {
  return async (schema, mine) => {
    signal?.throwIfAborted();
    channel.send(encode(mine));
    const late = new AbortController();
    const timer = setTimeout(() => {
      late.abort(
        new RunError("link.open", `stage ${neighbour} has not answered for ${stepMs / 1000} s while a link was opened`),
      );
    }, stepMs);
    try {
      const answer = channel.receive();
      answer.catch(() => undefined); // nothing may be waiting for it any more
      return checked(schema, decode(await Promise.race([answer, aborted(late.signal), ...(signal ? [aborted(signal)] : [])])));
    } finally {
      clearTimeout(timer);
    }
  };
}

const aborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });

function offerOf({ device, kind, capacity, bus }: LinkOptions): Offer {
  return {
    wanted: kind,
    host: sharingDomain(),
    compute: device.compute,
    gpu: device.sharing && { uuid: device.sharing.uuid, reaches: device.sharing.reaches },
    nccl: device.sharing?.nccl.version ?? null,
    ncclMissing: device.sharing?.nccl.missing ?? null,
    bus: bus !== null,
    capacity,
  };
}

const stepSchema = v.strictObject({
  kind: v.picklist(LINK_KINDS),
  value: v.unknown(),
  failure: v.nullable(v.string()),
});

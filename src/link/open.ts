// Opens a link to a neighbour in another process: finds out with it which kinds should work, and takes the best that does.

import * as v from "valibot";
import { RunError, textOf } from "../base/errors.ts";
import { decode, encode } from "../bus/codec.ts";
import type { Device } from "../device/device.ts";
import { sharingDomain } from "../device/shared.ts";
import type { Channel, Wire } from "./channel.ts";
import { choose, describe, type Offer } from "./choose.ts";
import { LINK_KINDS, type Link, type LinkKind, type Slots } from "./link.ts";
import { checked, type End, type Opened, type Opening } from "./opening.ts";
import { openShm } from "./shm.ts";
import { SlotLink } from "./slots.ts";

export type LinkOptions = {
  readonly device: Device;
  /** Who is at the other end, for messages: "stage 2". */
  readonly neighbour: string;
  /** Whether this end is the earlier stage's. */
  readonly first: boolean;
  readonly kind: "auto" | LinkKind;
  /** Messages that may be under way to this end, and their largest size. */
  readonly room: Slots;
  /** For the opening, and for what links without a better way have to say. Belongs to the link from now on, as does the wire. */
  readonly channel: Channel;
  readonly wire: Wire | null;
  /** Ends the link, whenever; its reason is a RunError. */
  readonly signal?: AbortSignal;
  /** How long the neighbour has for each step of the opening. */
  readonly stepMs?: number;
};

/** A link, which it is and why: "shm: both run on one machine (ipc: they have no GPUs; ...)". */
export type OpenLink = { readonly link: Link; readonly why: string };

const STEP_MS = 30_000;

const OPENERS: Readonly<Partial<Record<LinkKind, (end: End) => Opening>>> = { shm: openShm };

/**
 * Opens this end of a link; the neighbour does the same. Throws a RequestError, `link.kind` or `link.compute`, where what was asked
 * for cannot be, at both ends; a RunError, `link.open`, where it should work and does not.
 */
export async function openLink(options: LinkOptions): Promise<OpenLink> {
  const { channel, wire } = options;
  using whole = new DisposableStack();
  whole.use(channel);
  if (wire) whole.use(wire);
  const talk = talkTo(options);
  const offer = offerOf(options);
  const theirs = await talk(offerSchema, offer);
  const { candidates, against } = choose(offer, theirs);
  const failures: { kind: LinkKind; why: string }[] = [];
  for (const { kind, why } of candidates) {
    const opened = await attempt(kind, options, theirs.room, talk);
    if (typeof opened === "string") {
      failures.push({ kind, why: opened });
      continue;
    }
    const { neighbour, signal, room: mine } = options;
    const link = new SlotLink({ kind, neighbour, mine, theirs: theirs.room, signal, ...opened });
    const others = [...failures, ...against.filter((other) => isBetter(other.kind, kind))];
    if (opened.channel === channel) whole.move(); // its carrier has the wire
    return { link, why: `${kind}: ${why}${others.length > 0 ? ` (${describe(others)})` : ""}` };
  }
  throw new RunError("link.open", `no link to ${options.neighbour} could be opened: ${describe(failures)}`);
}

const isBetter = (a: LinkKind, b: LinkKind): boolean => a !== "local" && LINK_KINDS.indexOf(a) < LINK_KINDS.indexOf(b);

/** Takes the three steps with the neighbour; what went wrong, at either end, as a text. */
async function attempt(kind: LinkKind, options: LinkOptions, theirs: Slots, talk: Talk): Promise<Opened | string> {
  const { device, first, room: mine, channel, wire, neighbour } = options;
  using stack = new DisposableStack();
  let opening: Opening | null = null;
  let opened: Opened | null = null;
  const steps: readonly ((said: unknown) => unknown)[] = [
    () => {
      opening = stack.use(OPENERS[kind]!({ device, first, mine, theirs, channel, wire }));
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
      return mine.failure ?? `${neighbour}: ${answer.failure}`;
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
      late.abort(new RunError("link.open", `${neighbour} has not answered for ${stepMs / 1000} s while a link was opened`));
    }, stepMs);
    try {
      const answer = channel.receive();
      answer.catch(() => undefined); // nobody may be waiting for it any more
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

function offerOf({ device, kind, room, wire }: LinkOptions): Offer {
  return {
    wanted: kind,
    host: sharingDomain(),
    compute: device.compute,
    gpu: null,
    nccl: null,
    ncclMissing: null,
    bus: wire !== null,
    room,
  };
}

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(1));
const stepSchema = v.strictObject({
  kind: v.picklist(LINK_KINDS),
  value: v.unknown(),
  failure: v.nullable(v.string()),
});
const offerSchema: v.GenericSchema<unknown, Offer> = v.strictObject({
  wanted: v.picklist(["auto", ...LINK_KINDS]),
  host: v.string(),
  compute: v.picklist(["f32", "bf16"]),
  gpu: v.nullable(v.strictObject({ uuid: v.string(), reaches: v.array(v.string()) })),
  nccl: v.nullable(count),
  ncclMissing: v.nullable(v.string()),
  bus: v.boolean(),
  room: v.strictObject({ slots: count, slotBytes: count }),
});

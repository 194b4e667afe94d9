// A link over the bus, for stages that have nothing better. A tensor is copied into host memory, which frees it, and a thread of its
// own (courier.ts) carries it from there to the neighbour's host memory; on GPUs both are pinned.

import { Worker } from "node:worker_threads";
import * as v from "valibot";
import { invariant, RunError, textOf } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { alignUp, range } from "../base/shape.ts";
import type { Device } from "../device/device.ts";
import { createShared } from "../device/shared.ts";
import { type Channel, Queue } from "./channel.ts";
import type { FromCourier, Place, ToCourier } from "./courier.ts";
import { type Slots, tensorBytes } from "./link.ts";
import { checked, type End, type Opening } from "./opening.ts";
import type { Carrier } from "./slots.ts";

/** As bus/heartbeat.ts has it. */
const CODE = Bun.isStandaloneExecutable ? "./src/link/courier.ts" : new URL("./courier.ts", import.meta.url);
const ALIGN = 4096;

const ticketSchema = v.strictObject({ lane: v.pipe(v.string(), v.regex(/^[a-z0-9]{8}$/)) });

export function openNats({ device, first, mine, theirs, bus }: End): Opening {
  invariant(bus, "a link over the bus without one");
  const lane = randomText(8);
  const stack = new DisposableStack(); // the memory: to be freed when the thread has ended
  const [inbox, outbox] = [mine, theirs].map((room) => {
    const memory = stack.use(createShared(room.slots * strideOf(room)));
    memory.seal();
    stack.use(device.pin(memory.address, memory.bytes));
    return range(room.slots).map((slot): Place => ({ address: memory.address + slot * strideOf(room), bytes: room.slotBytes }));
  }) as [Place[], Place[]];
  const courier = startCourier();
  const release = () => void courier.exited.then(() => stack.dispose());
  return {
    ticket: { lane },
    async connect(ticket) {
      const { lane: other } = checked(ticketSchema, ticket);
      await courier.start({ type: "start", pair: bus, lane: first ? lane + other : other + lane, inbox, outbox });
      return null;
    },
    opened: () => ({ channel: courier, carrier: carrierOf(courier, inbox, outbox, device, release) }),
    [Symbol.dispose]: () => {
      courier[Symbol.dispose]();
      release();
    },
  };
}

function carrierOf(
  courier: Courier,
  inbox: readonly Place[],
  outbox: readonly Place[],
  device: Device,
  release: () => void,
): Carrier {
  return {
    async put(slot, from, announce) {
      const { address } = outbox[slot]!;
      await device.copyOut(address, from);
      courier.carry(slot, tensorBytes(from));
      announce();
    },
    async take(slot, into) {
      await courier.arrived(slot);
      await device.copyIn(into, inbox[slot]!.address);
    },
    [Symbol.dispose]: release,
  };
}

type Courier = Channel & {
  start(what: Extract<ToCourier, { type: "start" }>): Promise<void>;
  carry(slot: number, bytes: number): void;
  /** Resolves when the message that is to come into a slot is there. */
  arrived(slot: number): Promise<void>;
  /** Resolves when the thread has ended, some time after the courier was disposed of. */
  readonly exited: Promise<void>;
};

function startCourier(): Courier {
  const thread = new Worker(CODE);
  const say = (message: ToCourier) => thread.postMessage(message);
  const ready = Promise.withResolvers<void>();
  ready.promise.catch(() => undefined); // it may fail when nobody waits
  const notes = new Queue<Uint8Array>();
  const arrivals = new Map<number, Queue<null>>();
  let closed = false;
  const arrivalsOf = (slot: number): Queue<null> => {
    const found = arrivals.get(slot) ?? new Queue<null>();
    arrivals.set(slot, found);
    return found;
  };
  let over: Error | null = null;
  const end = (error: Error): void => {
    over ??= error;
    ready.reject(over);
    notes.end(over);
    for (const queue of arrivals.values()) queue.end(over);
  };
  thread.on("message", (message: FromCourier) => {
    if (message.type === "ready") ready.resolve();
    else if (message.type === "note") notes.push(message.note);
    else if (message.type === "arrived") arrivalsOf(message.slot).push(null);
    else if (message.type === "over") end(new RunError(message.code, message.message, message.hint));
    else void thread.terminate();
  });
  thread.on("error", (error) => end(new RunError("link.courier", textOf(error), undefined, { cause: error })));
  const exited = new Promise<void>((resolve) => thread.on("exit", () => resolve()));
  return {
    start(what) {
      say(what);
      return ready.promise;
    },
    carry: (slot, bytes) => say({ type: "send", slot, bytes }),
    async arrived(slot) {
      if (over) throw over;
      await arrivalsOf(slot).next();
    },
    send: (note) => say({ type: "note", note }),
    receive: () => notes.next(),
    exited,
    [Symbol.dispose]: () => {
      if (closed) return;
      closed = true;
      end(new RunError("link.closed", "the channel was closed"));
      say({ type: "close" });
    },
  };
}

const strideOf = ({ slotBytes }: Slots): number => alignUp(slotBytes, ALIGN);

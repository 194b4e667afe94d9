// A link over the bus, for stages that have nothing better. A tensor is copied into host memory, which frees it, and a thread
// of its own (transport-worker.ts) carries it from there to the neighbour's host memory; on GPUs both are pinned.

import { Worker } from "node:worker_threads";
import * as v from "valibot";
import { invariant, RunError, textOf } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { alignUp, range } from "../base/shape.ts";
import type { Device } from "../device/device.ts";
import { createShared } from "../device/shared.ts";
import { type Channel, Queue } from "./channel.ts";
import type { Slots } from "./link.ts";
import { checked, type End, type Opening } from "./opening.ts";
import { piecesOf } from "./pieces.ts";
import type { Carrier } from "./slots.ts";
import type { FromTransport, Place, ToTransport } from "./transport-worker.ts";

/** As bus/heartbeat.ts has it. */
const CODE = Bun.isStandaloneExecutable ? "./src/link/transport-worker.ts" : new URL("./transport-worker.ts", import.meta.url);
const ALIGN = 4096;

const ticketSchema = v.strictObject({ channelId: v.pipe(v.string(), v.regex(/^[a-z0-9]{8}$/)) });

export function openNats({ device, first, mine, theirs, bus }: End): Opening {
  invariant(bus, "a link over the bus without one");
  const channelId = randomText(8);
  const stack = new DisposableStack(); // the memory: to be freed when the thread has ended
  const [inbox, outbox] = [mine, theirs].map((capacity) => {
    const memory = stack.use(createShared(capacity.slots * strideOf(capacity)));
    memory.seal();
    stack.use(device.pin(memory.address, memory.bytes));
    return range(capacity.slots).map(
      (slot): Place => ({ address: memory.address + slot * strideOf(capacity), bytes: capacity.slotBytes }),
    );
  }) as [Place[], Place[]];
  const worker = startTransportWorker();
  const release = () => void worker.exited.then(() => stack.dispose());
  return {
    ticket: { channelId },
    async connect(ticket) {
      const { channelId: other } = checked(ticketSchema, ticket);
      await worker.start({ type: "start", pair: bus, channelId: first ? channelId + other : other + channelId, inbox, outbox });
      return null;
    },
    opened: () => ({ channel: worker, carrier: carrierOf(worker, inbox, outbox, device, release) }),
    [Symbol.dispose]: () => {
      worker[Symbol.dispose]();
      release();
    },
  };
}

function carrierOf(
  worker: TransportWorker,
  inbox: readonly Place[],
  outbox: readonly Place[],
  device: Device,
  release: () => void,
): Carrier {
  return {
    async put(slot, from, announce) {
      const { address } = outbox[slot]!;
      announce(); // the neighbour waits for the bytes
      for (const { at, end, tensor } of piecesOf(from)) {
        await device.copyOut(address + at, tensor);
        worker.carry(slot, at, end);
      }
    },
    async take(slot, into) {
      const { address } = inbox[slot]!;
      for (const { at, end, tensor } of piecesOf(into)) {
        await worker.arrived(slot, end);
        await device.copyIn(tensor, address + at);
      }
      worker.taken(slot);
    },
    [Symbol.dispose]: release,
  };
}

type TransportWorker = Channel & {
  start(what: Extract<ToTransport, { type: "start" }>): Promise<void>;
  carry(slot: number, at: number, end: number): void;
  /** Resolves when the bytes below `end` that are to come into a slot are there. */
  arrived(slot: number, end: number): Promise<void>;
  /** What comes next into a slot is another message. */
  taken(slot: number): void;
  /** Resolves when the thread has ended, some time after the worker was disposed of. */
  readonly exited: Promise<void>;
};

function startTransportWorker(): TransportWorker {
  const thread = new Worker(CODE);
  const post = (message: ToTransport) => thread.postMessage(message);
  const ready = Promise.withResolvers<void>();
  ready.promise.catch(() => undefined); // it may fail when nothing waits
  const notes = new Queue<Uint8Array>();
  const there = new Map<number, number>(); // by slot, the bytes that have come
  const waiting = new Map<number, { readonly end: number; resolve: () => void; reject: (error: Error) => void }>();
  let closed = false;
  let over: Error | null = null;
  const end = (error: Error): void => {
    over ??= error;
    ready.reject(over);
    notes.end(over);
    for (const { reject } of waiting.values()) reject(over);
    waiting.clear();
  };
  const arrive = (slot: number, end: number): void => {
    there.set(slot, end);
    const who = waiting.get(slot);
    if (!who || who.end > end) return;
    waiting.delete(slot);
    who.resolve();
  };
  thread.on("message", (message: FromTransport) => {
    if (message.type === "ready") ready.resolve();
    else if (message.type === "note") notes.push(message.note);
    else if (message.type === "arrived") arrive(message.slot, message.end);
    else if (message.type === "over") end(new RunError(message.code, message.message, message.hint));
    else void thread.terminate();
  });
  thread.on("error", (error) => end(new RunError("link.worker", textOf(error), undefined, { cause: error })));
  const exited = new Promise<void>((resolve) => thread.on("exit", () => resolve()));
  return {
    start(what) {
      post(what);
      return ready.promise;
    },
    carry: (slot, at, end) => post({ type: "send", slot, at, end }),
    arrived(slot, end) {
      if (over) return Promise.reject(over);
      if ((there.get(slot) ?? 0) >= end) return Promise.resolve();
      return new Promise((resolve, reject) => waiting.set(slot, { end, resolve, reject }));
    },
    taken: (slot) => void there.delete(slot),
    send: (note) => post({ type: "note", note }),
    receive: () => notes.next(),
    exited,
    [Symbol.dispose]: () => {
      if (closed) return;
      closed = true;
      end(new RunError("link.closed", "the channel was closed"));
      post({ type: "close" });
    },
  };
}

const strideOf = ({ slotBytes }: Slots): number => alignUp(slotBytes, ALIGN);

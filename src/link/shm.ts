// A link through memory that two processes of one machine share: the sender copies into a slot, the receiver out of it. On GPUs
// the memory is pinned, so that they copy by themselves.

import * as v from "valibot";
import { RunError } from "../base/errors.ts";
import { alignUp, range } from "../base/shape.ts";
import type { Device } from "../device/device.ts";
import { createShared, hostBytes, openShared, type SharedMemory } from "../device/shared.ts";
import type { Slots } from "./link.ts";
import { checked, type End, type Opening, openFileSchema } from "./opening.ts";
import { piecesOf } from "./pieces.ts";
import { openPipes } from "./pipes.ts";
import type { Carrier } from "./slots.ts";

/** Slots begin at a page, and are below 4 GiB. */
const ALIGN = 4096;

const ticketSchema = v.strictObject({ memory: openFileSchema, pipe: openFileSchema });

export function openShm({ device, mine, theirs }: End): Opening {
  const stack = new DisposableStack();
  const inbox = stack.use(createShared(bytesOf(mine)));
  const pipes = stack.use(openPipes());
  let outbox: SharedMemory | null = null;
  let channel: ReturnType<typeof pipes.connect> | null = null;
  return {
    ticket: { memory: inbox.file, pipe: pipes.file },
    async connect(ticket) {
      const { memory, pipe } = checked(ticketSchema, ticket);
      outbox = stack.use(openShared(memory, bytesOf(theirs)));
      outbox.seal();
      channel = pipes.connect(pipe);
      for (const { address, bytes } of [inbox, outbox]) stack.use(device.pin(address, bytes));
      return null;
    },
    opened() {
      inbox.seal();
      channel!.seal();
      const kept = stack.move(); // the pipe among them: the channel closes it, and once more is no harm
      const carrier = carrierOf(device, placesIn(inbox, mine), placesIn(outbox!, theirs), () => kept.dispose());
      return { channel: channel!, carrier };
    },
    [Symbol.dispose]: () => {
      channel?.[Symbol.dispose]();
      stack.dispose();
    },
  };
}

/** Where the slots begin, and of each how many bytes have been put there: the sender says so, the receiver looks. */
type Places = { readonly progress: Uint32Array; readonly addresses: readonly number[] };

function carrierOf(device: Device, inbox: Places, outbox: Places, release: () => void): Carrier {
  let over = false;
  return {
    async put(slot, from, announce) {
      Atomics.store(outbox.progress, slot, 0);
      for (const { at, end, tensor } of piecesOf(from)) {
        await device.copyOut(outbox.addresses[slot]! + at, tensor);
        Atomics.store(outbox.progress, slot, end);
        if (at === 0) announce(); // the neighbour has something to begin with
      }
    },
    async take(slot, into) {
      for (const { at, end, tensor } of piecesOf(into)) {
        while (Atomics.load(inbox.progress, slot) < end) {
          if (over) throw new RunError("link.closed", "it ended in the middle of a message");
          await new Promise((resolve) => setImmediate(resolve)); // the neighbour is at it: a matter of microseconds
        }
        await device.copyIn(tensor, inbox.addresses[slot]! + at);
      }
    },
    stop() {
      over = true;
    },
    [Symbol.dispose]: release,
  };
}

/** A page with the progress of each slot, then the slots. */
function placesIn({ address }: SharedMemory, capacity: Slots): Places {
  const addresses = range(capacity.slots).map((slot) => address + headerOf(capacity) + slot * strideOf(capacity));
  return { progress: new Uint32Array(hostBytes(address, 4 * capacity.slots).buffer), addresses };
}

const strideOf = ({ slotBytes }: Slots): number => alignUp(slotBytes, ALIGN);
const headerOf = ({ slots }: Slots): number => alignUp(4 * slots, ALIGN);
const bytesOf = (capacity: Slots): number => headerOf(capacity) + capacity.slots * strideOf(capacity);

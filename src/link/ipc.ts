// A link between GPUs of one machine without the host: the sender copies into a slot in the receiver's memory
// (device/cuda/sharing.ts). The two processes tell each other of it by pipes, and the copies wait for each other on the GPUs.

import * as v from "valibot";
import { invariant } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import type { Offered } from "../device/device.ts";
import { checked, type End, type Opening, openFileSchema } from "./opening.ts";
import { openPipes, type PipeChannel } from "./pipes.ts";
import type { Carrier } from "./slots.ts";

const HANDLE_BYTES = 64;

const handle = v.pipe(
  v.instance(Uint8Array),
  v.check((bytes) => bytes.length === HANDLE_BYTES, `Expected ${HANDLE_BYTES} bytes`),
);
const handles = v.array(handle);
const ticketSchema = v.strictObject({ memory: handle, emptied: handles, ready: handles, pipe: openFileSchema });
const offeredSchema = v.strictObject({ block: handle, from: count, ready: count });

export function openIpc({ device, mine, theirs }: End): Opening {
  invariant(device.sharing, "a link between GPUs for a device that is not one");
  const stack = new DisposableStack();
  const mailbox = stack.use(device.sharing.openMailbox(mine.slots, mine.slotBytes));
  const pipes = stack.use(openPipes());
  let channel: PipeChannel | null = null;
  return {
    ticket: { ...mailbox.handles, pipe: pipes.file },
    async connect(ticket) {
      const { pipe, ...slots } = checked(ticketSchema, ticket);
      invariant(slots.emptied.length === theirs.slots, `${slots.emptied.length} events for ${theirs.slots} slots`);
      const filled = mailbox.connect(slots, theirs.slotBytes);
      channel = pipes.connect(pipe);
      return filled;
    },
    opened(filled) {
      mailbox.complete(checked(handles, filled));
      channel!.seal();
      const kept = stack.move();
      const carrier: Carrier = {
        offer: (into) => mailbox.offer(into),
        settle: (offered) => mailbox.settle(offered as Offered),
        put(slot, from, announce, offered) {
          const done = mailbox.put(slot, from, offered === null ? null : checked(offeredSchema, offered));
          announce(); // the copy and its event are enqueued: what the neighbour enqueues from now on may wait for it
          return done;
        },
        async take(slot, into, filled) {
          mailbox.take(slot, into, filled);
        },
        [Symbol.dispose]: () => kept.dispose(),
      };
      return { channel: channel!, carrier };
    },
    [Symbol.dispose]: () => {
      channel?.[Symbol.dispose]();
      stack.dispose();
    },
  };
}

// A link through memory that two processes of one machine share: the sender copies into a slot, the receiver out of it. On GPUs
// the memory is pinned, so that they copy by themselves.

import * as v from "valibot";
import { alignUp } from "../base/shape.ts";
import { createShared, openShared, type SharedMemory } from "../device/shared.ts";
import type { Slots } from "./link.ts";
import { checked, type End, type Opening, openFileSchema } from "./opening.ts";
import { openPipes } from "./pipes.ts";

/** Slots begin at a page. */
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
      const [from, to] = [inbox.address, outbox!.address];
      const carrier = {
        async put(slot: number, tensor: Parameters<typeof device.copyOut>[1], announce: () => void) {
          await device.copyOut(to + slot * strideOf(theirs), tensor);
          announce();
        },
        take: (slot: number, into: Parameters<typeof device.copyIn>[0]) => device.copyIn(into, from + slot * strideOf(mine)),
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

const strideOf = ({ slotBytes }: Slots): number => alignUp(slotBytes, ALIGN);
const bytesOf = (room: Slots): number => room.slots * strideOf(room);

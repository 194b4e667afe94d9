// A link between GPUs by NCCL, between machines or where GPUs of one machine cannot reach each other's memory. What is where is
// said over the bus, so the stages must be on one.

import * as v from "valibot";
import { sleep } from "../base/clock.ts";
import { invariant, RunError } from "../base/errors.ts";
import { checked, type End, type Opening } from "./opening.ts";
import type { Carrier } from "./slots.ts";

/** Until what was given to the bus is on its way. */
const FLUSH_MS = 20;

const ticketSchema = v.strictObject({ ids: v.nullable(v.instance(Uint8Array)) });

export function openNccl({ device, first, mine, control }: End): Opening {
  invariant(device.sharing, "NCCL for a device that is no GPU");
  const exchange = device.sharing.openExchange(first, mine.slots, mine.slotBytes);
  return {
    ticket: { ids: exchange.ids },
    async connect(ticket) {
      const ids = exchange.ids ?? checked(ticketSchema, ticket).ids;
      if (ids?.length !== 256) throw new RunError("link.protocol", "it gave no ids for NCCL");
      await sleep(FLUSH_MS); // NCCL waits for the neighbour with the whole process: what it needs from us must have left
      exchange.connect(ids);
      return null;
    },
    opened() {
      const carrier: Carrier = {
        put(_, from, announce) {
          const done = exchange.put(from);
          announce();
          return done;
        },
        expect: (slot, bytes) => exchange.expect(slot, bytes),
        async take(slot, into) {
          exchange.take(slot, into);
        },
        stop: () => exchange.stop(),
        [Symbol.dispose]: () => exchange[Symbol.dispose](),
      };
      return { channel: control, carrier };
    },
    [Symbol.dispose]: () => exchange[Symbol.dispose](),
  };
}

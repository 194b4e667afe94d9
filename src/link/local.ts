// A link between two stages of one process: bytes wait in host memory until they are asked for.

import type { Device } from "../device/device.ts";
import { channelPair } from "./channel.ts";
import type { Link } from "./link.ts";
import { type Carrier, SlotLink } from "./slots.ts";

/** The two ends of a link, for the device of each; `slots` messages may be under way in each direction. */
export function localLink(left: Device, right: Device, slots = 2): readonly [Link, Link] {
  const boxes = [new Map<number, Uint8Array>(), new Map<number, Uint8Array>()] as const; // to the left, to the right
  const carrier = (device: Device, inbox: Map<number, Uint8Array>, outbox: Map<number, Uint8Array>): Carrier => ({
    async put(slot, from, announce) {
      outbox.set(slot, await device.read(from));
      announce();
    },
    async take(slot, into) {
      device.write(into, inbox.get(slot)!);
      inbox.delete(slot);
    },
    [Symbol.dispose]: () => inbox.clear(),
  });
  const [toRight, toLeft] = channelPair();
  const capacity = { slots, slotBytes: Number.POSITIVE_INFINITY };
  const common = { kind: "local", mine: capacity, theirs: capacity } as const;
  return [
    new SlotLink({ ...common, neighbour: "the next stage", channel: toRight, carrier: carrier(left, boxes[0], boxes[1]) }),
    new SlotLink({ ...common, neighbour: "the previous stage", channel: toLeft, carrier: carrier(right, boxes[1], boxes[0]) }),
  ];
}

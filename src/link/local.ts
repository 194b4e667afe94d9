// A link between two stages of one process: bytes wait in host memory until they are asked for.

import type { Device, Tensor } from "../device/device.ts";
import type { Link } from "./link.ts";

type Waiting = { readonly promise: Promise<Uint8Array>; readonly resolve: (bytes: Uint8Array) => void };

/** The two ends of a link, for the device of each. */
export function localLink(left: Device, right: Device): readonly [Link, Link] {
  const boxes = [new Map<string, Waiting>(), new Map<string, Waiting>()] as const; // to the left, to the right
  const end = (device: Device, inbox: Map<string, Waiting>, outbox: Map<string, Waiting>): Link => ({
    async send(tag: string, tensor: Tensor) {
      boxOf(outbox, tag).resolve(await device.read(tensor));
    },
    async receive(tag: string, into: Tensor) {
      device.write(into, await boxOf(inbox, tag).promise);
      inbox.delete(tag);
    },
    [Symbol.dispose]() {
      inbox.clear();
    },
  });
  return [end(left, boxes[0], boxes[1]), end(right, boxes[1], boxes[0])];
}

function boxOf(boxes: Map<string, Waiting>, tag: string): Waiting {
  const found = boxes.get(tag);
  if (found) return found;
  const { promise, resolve } = Promise.withResolvers<Uint8Array>();
  const made = { promise, resolve };
  boxes.set(tag, made);
  return made;
}

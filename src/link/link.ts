// How activations and gradients go from a stage to its neighbour. What is sent is a tensor of a known shape; which micro-batch
// it belongs to is the tag.

import * as v from "valibot";
import { bytesOf } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { natural, type Output } from "../base/schema.ts";
import { sizeOf } from "../base/shape.ts";
import type { Tensor } from "../device/device.ts";

/**
 * Best first: within a process; between GPUs without the host; between GPUs by NCCL; through memory that two processes share;
 * over the bus.
 */
export const LINK_KINDS = ["local", "ipc", "nccl", "shm", "nats"] as const;
export type LinkKind = (typeof LINK_KINDS)[number];

/**
 * One end of a link between two stages; both send and receive. A few messages are under way at most in each direction: when
 * none of them is taken, `send` waits. Messages may be taken in another order than they were sent in if their tags differ;
 * those of one tag come in order. Once an end is disposed of, or its process has ended, everything at the other end fails with
 * a RunError, `link.*`, but what had arrived before an orderly end can still be received.
 */
export interface Link extends Disposable {
  readonly kind: LinkKind;
  /**
   * Resolves when `tensor` may be overwritten; what is launched before is waited for. Throws `link.size` for what is too large.
   */
  send(tag: string, tensor: Tensor): Promise<void>;
  /**
   * Fills `into` with what the neighbour sent under `tag`; waits for it. What is launched from then on sees it. Throws
   * `link.size` where it is of another size; then it can be received again.
   */
  receive(tag: string, into: Tensor): Promise<void>;
}

/** Room for messages at each end: the list of actions says how many may wait there, the plan how large they get. */
export const slotsSchema = v.strictObject({ slots: natural, slotBytes: natural });
export type Slots = Output<typeof slotsSchema>;

export const tensorBytes = ({ dtype, shape, stride }: Tensor): number => {
  invariant(stride === undefined || stride === sizeOf(shape.slice(1)), "a tensor with gaps cannot cross a link");
  return sizeOf(shape) * bytesOf(dtype);
};

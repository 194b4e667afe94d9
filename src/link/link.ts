// How activations and gradients go from a stage to its neighbour. What is sent is a tensor of a known shape; which micro-batch
// it belongs to is the tag.

import type { Tensor } from "../device/device.ts";

export interface Link extends Disposable {
  /** Resolves when `tensor` may be overwritten. */
  send(tag: string, tensor: Tensor): Promise<void>;
  /** Fills `into` with what the neighbour sent under `tag`; waits for it. */
  receive(tag: string, into: Tensor): Promise<void>;
}

// How the two ends of a link of some kind come to know each other: in three steps, each end saying something at each, so that
// both find out whether it works before either relies on it.

import * as v from "valibot";
import { RunError } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import type { Device } from "../device/device.ts";
import type { Channel } from "./channel.ts";
import type { Slots } from "./link.ts";
import type { BusPair } from "./peer-channel.ts";
import type { Carrier } from "./slots.ts";

/** What an end brings along. */
export type End = {
  readonly device: Device;
  /** Which of the two it is: the earlier stage. */
  readonly first: boolean;
  readonly mine: Slots;
  readonly theirs: Slots;
  /** On which the opening goes; a link that has none of its own may keep it. */
  readonly control: Channel;
  /** Null where there is no bus. */
  readonly bus: BusPair | null;
};

export type Opened = { readonly channel: Channel; readonly carrier: Carrier };

/**
 * An end on its way; each value that the neighbour gives is plain data, to be checked. Disposing gives up, until it is
 * `opened`.
 */
export interface Opening extends Disposable {
  /** What the neighbour needs to connect to us. */
  readonly ticket: unknown;
  /** Connects to the neighbour; what it gives is for the neighbour's `opened`. */
  connect(ticket: unknown): Promise<unknown>;
  /** Both have connected. From now on the result is what must be disposed of. */
  opened(connected: unknown): Opened;
}

export const openFileSchema = v.strictObject({ pid: count, fd: count });

/** What the neighbour said, checked. Throws a RunError, `link.protocol`. */
export function checked<T>(schema: v.GenericSchema<unknown, T>, value: unknown): T {
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  throw new RunError("link.protocol", `it said what cannot be understood: ${result.issues[0].message}`);
}

// What is known of a device before it is opened: a process finds it on its machine, a stage announces it, plans are made from
// it.

import * as v from "valibot";
import { count, natural, type Output } from "./schema.ts";

export const deviceReport = v.strictObject({
  kind: v.picklist(["cpu", "cuda"]),
  name: v.string(),
  compute: v.picklist(["f32", "bf16"]),
  rowTile: count,
  /** Of a CPU: whether it multiplies in bf16. */
  multipliesBf16: v.exactOptional(v.boolean()),
  /** Of a CPU: whether it does so in less time than in f32. */
  prefersBf16: v.exactOptional(v.boolean()),
  /** Of a CPU: whether embedding and head may be held in bf16, because products of its own take them apart as they go. */
  packsTables: v.exactOptional(v.boolean()),
  /** Threads of a CPU that share the work, at most; 0 of a GPU. */
  threads: count,
  totalBytes: count,
  freeBytes: count,
  /** Of a GPU: what is free of its machine's memory. */
  hostFreeBytes: v.optional(count),
  /** Its number among the devices of its machine, and how many such devices there are. */
  ordinal: count,
  count,
  /** The reason why it is not a GPU, where one might be expected; null otherwise. */
  note: v.nullable(v.string()),
});
export type DeviceReport = Output<typeof deviceReport>;
export type DeviceKind = DeviceReport["kind"];

/**
 * A device to open. `rowTile` is that of all stages, left out: its own; `stagesOnHost` processes of the run share its machine's
 * cores, this one among them.
 */
export const deviceChoice = v.strictObject({
  ...v.pick(deviceReport, ["kind", "compute", "ordinal"]).entries,
  rowTile: v.exactOptional(count),
  stagesOnHost: natural,
});
export type DeviceChoice = Output<typeof deviceChoice>;

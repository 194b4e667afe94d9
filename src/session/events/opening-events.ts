// Events around the training itself: a session is opened, continues a run, opens its stages, and opens them again.

import * as v from "valibot";
import { layerRange } from "../../base/layers.ts";
import { count } from "../../base/schema.ts";

const text = v.nullable(v.string());

/** Variants of `sessionEventSchema`. */
export const openingEventSchemas = [
  /** The data is read so far: `bytes` of `totalBytes`, which are the sizes of all files. */
  v.strictObject({
    type: v.literal("reading"),
    rows: count,
    bytes: count,
    totalBytes: count,
    fetching: v.exactOptional(v.string()),
  }),
  /** The run waits for `missing` stages on other machines; `keyFile` has the run's key (null: the key was given). */
  v.strictObject({ type: v.literal("invitation"), run: v.string(), missing: count, url: v.string(), keyFile: text }),
  /**
   * The output folder holds a run, which this one continues: adapters from `step`, or (`status`) with the end that they had.
   */
  v.strictObject({
    type: v.literal("continued"),
    output: v.string(),
    adapters: v.array(v.strictObject({ name: v.string(), status: text, step: count, steps: count })),
  }),
  /**
   * Nothing is wrong with the request, as far as its rows are read. `notices` concern its model and data; `paused` adapters
   * stay paused, as before.
   */
  v.strictObject({
    type: v.literal("accepted"),
    run: v.string(),
    model: v.string(),
    device: v.string(),
    adapters: v.array(v.string()),
    slots: count,
    notices: v.array(v.string()),
    paused: v.array(v.string()),
  }),
  /**
   * The stages are open, and training begins. A stage has the layers from `from` on and below `to`, N.5 within layer N, on a
   * device (`host` is empty on this machine), and a link to the next stage, null for the last; `tokens` are those of all an
   * adapter's `steps`.
   */
  v.strictObject({
    type: v.literal("opened"),
    stages: v.array(v.strictObject({ ...layerRange.entries, host: v.string(), device: v.string(), link: text })),
    adapters: v.array(v.strictObject({ name: v.string(), index: count, steps: count, tokens: count, isEnded: v.boolean() })),
  }),
  /**
   * The stages are closed, to be opened again: for more adapters, with less memory, because rows are others than training began
   * with, or because one was lost, for the `restart`th of at most `restarts` times.
   */
  v.strictObject({
    type: v.literal("reopening"),
    cause: v.variant("why", [
      v.strictObject({ why: v.literal("capacity") }),
      v.strictObject({ why: v.literal("memory"), message: v.string() }),
      v.strictObject({ why: v.literal("rows"), message: v.string() }),
      v.strictObject({ why: v.literal("lost"), message: v.string(), restart: count, restarts: count }),
    ]),
  }),
  /** By a new plan: `slots` of `adapters` train at once, in passes of at most `rows` tokens. */
  v.strictObject({ type: v.literal("replanned"), slots: count, adapters: count, rows: count }),
] as const;

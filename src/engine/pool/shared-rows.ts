// Rows of tokens that serve both tables of a tied model lie twice in an adapter's blocks, once for each table. They are one
// parameter: the gradients of both are added before a step, and both copies make it.

import { invariant } from "../../base/errors.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { elementsFrom } from "../../device/arena.ts";
import type { Device, Tensor } from "../../device/device.ts";
import { sharesRows, type TableKind } from "../../methods/tables.ts";
import { gradientsAdd } from "../../ops/tables.ts";
import type { HeldAdapter } from "./held-adapter.ts";

/** Their gradients f32[E] at each table that is on the stage. */
export type SharedRows = Readonly<Partial<Record<TableKind, Tensor>>>;

/** None of an adapter without. */
export function sharedRows(spec: ModelSpec, { adapter, layout: { tables } }: HeldAdapter, grads: Tensor): SharedRows {
  if (!sharesRows(spec, adapter.tables)) return {};
  const at = (kind: TableKind) => {
    const place = tables[kind]?.places.rows;
    return place ? { [kind]: elementsFrom(grads, place.offset, place.rows * place.columns) } : {};
  };
  return { ...at("embedding"), ...at("head") };
}

/** The gradient of the embedding's goes to the head's, which is then the whole; does nothing a second time. */
export function gatherShared(device: Device, { embedding, head }: SharedRows): void {
  if (!embedding || !head) return;
  gradientsAdd(device, { x: embedding, y: head });
  device.zero(embedding);
}

/** Gives the embedding's the whole gradient, for a step. */
export function spreadShared(device: Device, { embedding, head }: SharedRows): void {
  if (embedding && head) device.copy(embedding, head);
}

/** The same between two stages, as bus/messages.ts says. */
export async function exchangeShared(
  device: Device,
  { embedding, head }: SharedRows,
  what: "take" | "add" | "put",
  values?: Float32Array,
): Promise<Float32Array> {
  const own = what === "add" ? head : embedding;
  invariant(own && (what === "take") === (values === undefined), `no gradient of shared rows to ${what}`);
  if (what === "put") {
    device.write(own, values!);
    return new Float32Array(0);
  }
  const found = new Float32Array((await device.read(own)).buffer);
  if (what === "take") device.zero(own);
  else {
    for (const [i, value] of values!.entries()) found[i]! += value;
    device.write(own, found);
  }
  return found;
}

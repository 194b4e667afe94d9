// The adapters of spans by name: stages know adapters by their slots, which change hands during a run.

import { now } from "../../base/clock.ts";
import type { StageSpan } from "../../bus/messages.ts";

/** Passes whose adapters are remembered; those of older ones are found by the time of the span. */
const MOST_PASSES = 20_000;
/** Adapters that are remembered of each slot, the latest. */
const MOST_HOLDERS = 1000;

type Holder = { readonly name: string; readonly from: number };

export class SpanNames {
  readonly #passes = new Map<number, readonly string[]>();
  /** What each slot has had, in order. */
  readonly #holders: Holder[][] = [];

  /** A packed batch has begun. */
  begin(pass: number, adapters: readonly string[]): void {
    this.#passes.delete(pass);
    this.#passes.set(pass, adapters);
    if (this.#passes.size > MOST_PASSES) this.#passes.delete(this.#passes.keys().next().value!);
  }

  /** From now on the slot has this adapter. */
  hold(slot: number, name: string): void {
    const all = this.#holders[slot] ?? [];
    this.#holders[slot] = all;
    all.push({ name, from: now() });
    if (all.length > MOST_HOLDERS) all.shift();
  }

  /** `began`: the beginning of the span's axis, by our clock in ms. */
  of({ pass, adapters, end }: Pick<StageSpan, "pass" | "adapters" | "end">, began: number): readonly string[] {
    const isBefore = ({ from }: Holder) => from <= began + end;
    const at = (slot: number) => this.#holders[slot]?.findLast(isBefore)?.name ?? [];
    return (pass === null ? null : this.#passes.get(pass)) ?? adapters.flatMap(at);
  }
}

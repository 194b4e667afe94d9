// Whether adapters that are to be exported compute numbers: their losses on a few rows, of many adapters in one pass.

import { sleep } from "../base/clock.ts";
import { alignUp, sum } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import type { Plan } from "../plan/plan.ts";
import { pack, type Row, type Segment, segmentRows } from "../schedule/pack.ts";
import { countTargets, evaluationSegment, totalsOf } from "./batches.ts";

/** Rows of an adapter that are looked at. */
const PROBE_ROWS = 4;
/** Likelihoods are looked at, whatever the objective was. */
const SFT = { name: "sft" } as const;
/** Passes under way at most: trained ones come between them. */
const AHEAD = 4;

type Probe = { readonly slot: number; readonly rows: readonly Row[]; readonly found: PromiseWithResolvers<number> };
/** Rows `from` to `until` of a probe. */
type Part = { readonly of: Probe; readonly from: number; readonly until: number };

/**
 * Adapters whose losses are asked for at one time share passes of as many rows as the plan has room for. A row's loss does not
 * depend on the others of its pass.
 */
export class Probes {
  readonly #waiting: Probe[] = [];
  /** Rows of the first probe that passes have already. */
  #begun = 0;
  readonly #losses = new Map<Probe, number[]>();
  #underway = 0;
  #isSending = false;

  constructor(
    private readonly bus: Bus,
    private readonly plan: Pick<Plan, "slots" | "passRows" | "stages" | "device">,
  ) {}

  /**
   * The mean loss of the adapter in a slot over the targets of the first few of `samples`, in its state after all requests so
   * far; null where these have none.
   */
  async loss(slot: number, samples: readonly Row[]): Promise<number | null> {
    // Of a prompt, which has no answer, the tokens that it has itself.
    const maskOf = ({ ids, mask, columns }: Row) => (columns === undefined ? mask : new Uint8Array(ids.length).fill(1));
    const rows = samples.slice(0, PROBE_ROWS).map((row) => ({ ids: row.ids, mask: maskOf(row) }));
    const targets = sum(rows.map(countTargets));
    if (targets === 0) return null;
    const found = Promise.withResolvers<number>();
    this.#waiting.push({ slot, rows, found });
    void this.#send();
    return (await found.promise) / targets;
  }

  async #send(): Promise<void> {
    if (this.#isSending) return;
    this.#isSending = true;
    await sleep(0); // those that are asked for together share the first pass
    while (this.#underway < AHEAD && this.#waiting.length > 0) {
      const parts = this.#take();
      this.#underway++;
      void this.#pass(parts).finally(() => {
        this.#underway--;
        void this.#send();
      });
    }
    this.#isSending = false;
  }

  /** The next rows, while there is room; one at least, which the plan has room for as it trains or evaluates each. */
  #take(): Part[] {
    const { passRows, stages, device } = this.plan;
    const most = Math.min(alignUp(passRows, device.rowTile), stages[0]!.sizes.rows);
    const parts: Part[] = [];
    let taken = 0;
    for (let of = this.#waiting[0]; of; of = this.#waiting[0]) {
      const from = this.#begun;
      let until = from;
      const rowsTo = (end: number) => segmentRows(of.rows.slice(from, end), device.rowTile);
      while (until < of.rows.length && (taken + rowsTo(until + 1) <= most || (taken === 0 && until === from))) until++;
      if (until === from) break;
      taken += rowsTo(until);
      parts.push({ of, from, until });
      this.#begun = until;
      if (until < of.rows.length) break;
      this.#waiting.shift();
      this.#begun = 0;
    }
    return parts;
  }

  async #pass(parts: readonly Part[]): Promise<void> {
    try {
      const segments = parts.map(({ of: { slot, rows }, from, until }): Segment => {
        const these = [...rows.keys()].slice(from, until);
        return evaluationSegment(slot, rows, these, totalsOf(rows, SFT), SFT, null);
      });
      const batch = pack(segments, this.plan.slots, this.plan.device.rowTile);
      const losses: readonly SequenceLoss[] = (await requestAll(this.bus, { type: "evaluate", batch })).at(-1)!;
      let first = 0;
      for (const { of, from, until } of parts) {
        const known = this.#losses.get(of) ?? [];
        known.push(...losses.slice(first, first + until - from).map(({ loss }) => loss));
        first += until - from;
        this.#losses.set(of, known);
        if (known.length < of.rows.length) continue;
        this.#losses.delete(of);
        of.found.resolve(sum(known));
      }
    } catch (error) {
      for (const { of } of parts) {
        this.#losses.delete(of);
        of.found.reject(error);
      }
    }
  }
}

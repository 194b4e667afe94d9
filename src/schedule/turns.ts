// Which adapters give up their place on the devices, where more train than fit there. Those that wait come in the order in
// which their last turns ended, a higher priority first, and none overtakes one before it that still waits for room.
//
// A turn is a number of an adapter's steps, the same for all, so that adapters of one priority make equally many steps in a
// round. It is long enough for a copy to take no longer than the steps of others meanwhile (docs/architecture.md).

/** An adapter that waits for its turn, and the bytes that it takes on each stage. */
export type Waiting = { readonly priority: number; readonly bytes: readonly number[] };
/** One on the devices; `made`: steps of its turn. */
export type Resident = Waiting & { readonly adapter: number; readonly made: number };

/** A turn's steps take this many times as long as the copy of an adapter, which goes both ways at once. */
const MARGIN = 1.5;
const MOST_STEPS = 100;

/** Steps of a turn, by milliseconds of a copy and of a step's share of the devices; null where they are not known yet. */
export const stepsOfTurn = (copyMs: number | null, stepMs: number | null): number =>
  copyMs === null || stepMs === null || stepMs <= 0
    ? 1
    : Math.min(MOST_STEPS, Math.max(1, Math.ceil((MARGIN * copyMs) / stepMs)));

/**
 * The residents that leave now, or after the step under way. One leaves for another of its priority when its turn is over, and
 * for a higher priority in any case. `free`: bytes of each stage that no resident has, or soon none.
 */
export function leaving(
  queue: readonly Waiting[],
  residents: readonly Resident[],
  free: readonly number[],
  steps: number,
): number[] {
  const last = residents.toSorted((a, b) => a.priority - b.priority || b.made - a.made || a.adapter - b.adapter);
  const found: number[] = [];
  let room = free;
  for (const { priority, bytes } of queue) {
    const fits = () => bytes.every((needed, stage) => needed <= room[stage]!);
    while (!fits()) {
      const next = last.findIndex((of) => of.priority < priority || (of.priority === priority && of.made >= steps));
      if (next < 0) return found;
      const [victim] = last.splice(next, 1);
      found.push(victim!.adapter);
      room = room.map((left, stage) => left + victim!.bytes[stage]!);
    }
    room = room.map((left, stage) => left - bytes[stage]!);
  }
  return found;
}

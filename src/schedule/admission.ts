// Which adapters train now: the higher priority first, within one first come first served, and a higher priority takes the
// place of a lower one. A function of the adapters that are there, asked again at the end of every iteration (mLoRA, section 4:
// the priority scheduler).
//
// A place is a slot, and on each stage as much memory as the adapter needs. No adapter overtakes one that comes before it and
// still waits for memory, so that a large one is not passed over for ever.

export type Candidate = {
  readonly adapter: number;
  readonly priority: number;
  /** Counts up: the adapter that came first has the lower number. */
  readonly arrived: number;
  /** Bytes that it takes on each stage. */
  readonly bytes: readonly number[];
};

/** Slots, and bytes on each stage. */
export type Room = { readonly slots: number; readonly bytes: readonly number[] };

export type Admissions = { readonly admit: readonly number[]; readonly preempt: readonly number[] };

/** `free` is what no adapter has; `leaving`, of what is taken, will be free soon. */
export function admissions(waiting: readonly Candidate[], active: readonly Candidate[], free: Room, leaving: Room): Admissions {
  const queue = [...waiting].sort(before);
  const admit: number[] = [];
  let room = free;
  for (const candidate of queue) {
    if (!hasRoom(room, candidate)) break;
    room = without(room, candidate);
    admit.push(candidate.adapter);
  }
  const last = [...active].sort(before).reverse();
  const preempt: number[] = [];
  room = together(room, leaving);
  for (const candidate of queue.slice(admit.length)) {
    const victims: Candidate[] = [];
    let found = room;
    while (!hasRoom(found, candidate)) {
      const victim = last[victims.length];
      if (!victim || victim.priority >= candidate.priority) return { admit, preempt };
      victims.push(victim);
      found = together(found, { slots: 1, bytes: victim.bytes });
    }
    last.splice(0, victims.length);
    preempt.push(...victims.map(({ adapter }) => adapter));
    room = without(found, candidate);
  }
  return { admit, preempt };
}

export const hasRoom = ({ slots, bytes }: Room, { bytes: needed }: Pick<Candidate, "bytes">): boolean =>
  slots > 0 && bytes.every((free, stage) => free >= needed[stage]!);
export const without = ({ slots, bytes }: Room, { bytes: taken }: Pick<Candidate, "bytes">): Room => ({
  slots: slots - 1,
  bytes: bytes.map((free, stage) => free - taken[stage]!),
});
export const together = (a: Room, b: Room): Room => ({
  slots: a.slots + b.slots,
  bytes: a.bytes.map((free, stage) => free + b.bytes[stage]!),
});

const before = (a: Candidate, b: Candidate): number => b.priority - a.priority || a.arrived - b.arrived;

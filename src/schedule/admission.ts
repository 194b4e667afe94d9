// Which adapters train now: the higher priority first, within one first come first served, and a higher priority takes the
// place of a lower one. A function of the adapters that are there, asked again at the end of every iteration (mLoRA, section 4:
// the priority scheduler).

export type Candidate = {
  readonly adapter: number;
  readonly priority: number;
  /** Counts up: the adapter that came first has the lower number. */
  readonly arrived: number;
};

export type Admissions = { readonly admit: readonly number[]; readonly preempt: readonly number[] };

/** `free` are the slots that no adapter has; `leaving` of those that are taken will be free soon. */
export function admissions(
  waiting: readonly Candidate[],
  active: readonly Candidate[],
  free: number,
  leaving: number,
): Admissions {
  const queue = [...waiting].sort(before);
  const admit = queue.slice(0, free).map(({ adapter }) => adapter);
  const last = [...active].sort(before).reverse();
  const preempt: number[] = [];
  for (const { priority } of queue.slice(free + leaving)) {
    const victim = last.shift();
    if (!victim || victim.priority >= priority) break;
    preempt.push(victim.adapter);
  }
  return { admit, preempt };
}

const before = (a: Candidate, b: Candidate): number => b.priority - a.priority || a.arrived - b.arrived;

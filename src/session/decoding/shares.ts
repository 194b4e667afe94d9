// Shares of owners in what is computed: the one that has had the least for its weight comes first. An owner that had no work
// for a while has no claim for that time.

export class Shares {
  /** Work that each owner has had, divided by its weight. */
  readonly #had = new Map<string, number>();

  /** `weightOf`: an owner of twice the weight gets twice as much. */
  constructor(private readonly weightOf: (owner: string) => number = () => 1) {}

  /** The items in their owners' turns, by what these have been charged until then; those of one owner stay in their order. */
  *inTurn<T>(items: readonly T[], ownerOf: (item: T) => string): Generator<T, undefined> {
    const queues = Map.groupBy(items, ownerOf);
    const known = [...queues.keys()].flatMap((owner) => this.#had.get(owner) ?? []);
    const least = known.length > 0 ? Math.min(...known) : 0;
    for (const owner of this.#had.keys()) if (!queues.has(owner)) this.#had.delete(owner);
    for (const owner of queues.keys()) if (!this.#had.has(owner)) this.#had.set(owner, least);
    while (queues.size > 0) {
      const owners = [...queues.keys()];
      const next = owners.reduce((a, b) => (this.#had.get(b)! < this.#had.get(a)! ? b : a));
      const queue = queues.get(next)!;
      yield queue.shift()!;
      if (queue.length === 0) queues.delete(next);
    }
  }

  /** An owner did not need this much of what it was charged with. */
  refund(owner: string, amount: number): void {
    this.add(owner, -amount);
  }

  /** An owner has had work of this size since it had its turn. */
  add(owner: string, amount: number): void {
    if (this.#had.has(owner)) this.charge(owner, amount); // else it has no work, and no claim
  }

  /** An owner has had work of this size. */
  charge(owner: string, amount: number): void {
    this.#had.set(owner, (this.#had.get(owner) ?? 0) + amount / this.weightOf(owner));
  }
}

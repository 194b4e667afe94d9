// Blocks of memory that adapters leave and others of the same size take: to give memory back to a driver, or to pin it, takes
// milliseconds in which nothing is launched.

type Block = { readonly size: number };

/** `A`: what an allocation gives, the block or a promise of it. */
export class BlockCache<T extends Block, A extends T | Promise<T> = T> implements Disposable {
  readonly #idle: T[] = [];
  #taken = 0;

  /** `limit`: bytes of blocks in use and idle ones together, above which idle ones are released. */
  constructor(
    private readonly limit: number,
    private readonly allocate: (bytes: number) => A,
    private readonly release: (block: T) => void,
  ) {}

  take(bytes: number): T | A {
    const known = this.#idle.findIndex(({ size }) => size === bytes);
    const block = known < 0 ? this.#allocate(bytes) : this.#idle.splice(known, 1)[0]!;
    this.#taken += bytes;
    return block;
  }

  /** Keeps a block for the next that takes one of its size. */
  keep(block: T): void {
    this.#taken -= block.size;
    this.#idle.push(block);
  }

  /** Releases a block that was taken. */
  drop(block: T): void {
    this.#taken -= block.size;
    this.release(block);
  }

  #allocate(bytes: number): A {
    let idle = 0;
    for (const { size } of this.#idle) idle += size;
    if (this.#taken + idle + bytes > this.limit) this[Symbol.dispose]();
    return this.allocate(bytes);
  }

  /** Releases all idle blocks. */
  [Symbol.dispose](): void {
    for (const block of this.#idle.splice(0)) this.release(block);
  }
}

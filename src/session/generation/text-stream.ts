// The text of an answer as its tokens come: whole characters, and nothing of a stop text.

export class TextStream {
  readonly #ids: number[] = [];
  /** Tokens from #from to #read are decoded again with each new one, which may join them to other characters. */
  #from = 0;
  #read = 0;
  /** Text that may be the beginning of a stop text. */
  #held = "";

  constructor(
    private readonly decode: (ids: readonly number[]) => string,
    private readonly stops: readonly string[],
  ) {}

  /** The text that is certain now; `isStopped`: a stop text has come, and the text ends before it. */
  push(id: number): { readonly text: string; readonly isStopped: boolean } {
    this.#ids.push(id);
    const before = this.decode(this.#ids.slice(this.#from, this.#read));
    const all = this.decode(this.#ids.slice(this.#from));
    if (all.endsWith("\ufffd") || all.length < before.length) return { text: "", isStopped: false };
    this.#from = this.#read;
    this.#read = this.#ids.length;
    return this.#tell(all.slice(before.length));
  }

  /** What is left when no more comes. */
  end(): string {
    const before = this.decode(this.#ids.slice(this.#from, this.#read));
    const rest = this.decode(this.#ids.slice(this.#from)).slice(before.length);
    const { text, isStopped } = this.#tell(rest);
    return isStopped ? text : text + this.#held;
  }

  #tell(more: string): { readonly text: string; readonly isStopped: boolean } {
    const all = this.#held + more;
    const found = this.stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) return { text: all.slice(0, Math.min(...found)), isStopped: true };
    let held = Math.max(0, ...this.stops.map((stop) => stop.length - 1));
    while (held > 0 && !this.stops.some((stop) => stop.startsWith(all.slice(-held)))) held--;
    held = Math.min(held, all.length);
    this.#held = held === 0 ? "" : all.slice(-held);
    return { text: all.slice(0, all.length - held), isStopped: false };
  }
}

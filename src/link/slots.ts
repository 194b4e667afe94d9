// What all links have in common: slots, tags, sizes, order and ends. How bytes get into a slot of the neighbour's, and out of
// one of our own, is the carrier's.
//
// Each end has slots that the other fills. The sender knows which are free, and says over the channel what it has put where;
// the receiver says when a slot is free again. So a message is never sent into nothing, memory is what was taken at the start,
// and a sender whose neighbour lags behind waits.

import * as v from "valibot";
import { onAbort } from "../base/abort.ts";
import { RunError, textOf } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import { range } from "../base/shape.ts";
import { formatBytes } from "../base/units.ts";
import { decode, encode } from "../bus/codec.ts";
import type { Tensor } from "../device/device.ts";
import type { Channel } from "./channel.ts";
import { type Link, type LinkKind, type Slots, tensorBytes } from "./link.ts";

export interface Carrier extends Disposable {
  /**
   * Puts a tensor into a slot of the neighbour's. Calls `announce` once, when the neighbour may be notified to take it, and
   * resolves when the tensor may be overwritten. The next `put` comes after `announce`. Where the neighbour's carrier has
   * offered the tensor that waits for this one, it is put there, and the slot stands for it.
   */
  put(slot: number, from: Tensor, announce: () => void, offered: unknown): Promise<void>;
  /** Lets the neighbour fill `into` itself, where that can be: plain data for its `put`. */
  offer?(into: Tensor): unknown;
  /** What was offered has been answered, there or by a slot. */
  settle?(offered: unknown): void;
  /** A message is on its way into one of our slots; called in the order in which they were sent. */
  expect?(slot: number, bytes: number): void;
  /**
   * Takes a tensor out of one of our slots, or the neighbour has `filled` it itself; resolves when the neighbour may be
   * notified to fill the slot again.
   */
  take(slot: number, into: Tensor, filled: boolean): Promise<void>;
  /** The link is over: what waits for the neighbour must fail. */
  stop?(): void;
  /** Comes when the channel is closed and nothing of the above is under way; those that wait fail when it is. */
  [Symbol.dispose](): void;
}

const TAG_LENGTH = 256;
const tag = v.pipe(v.string(), v.maxLength(TAG_LENGTH));
const note = v.variant("kind", [
  v.strictObject({ kind: v.literal("full"), slot: count, tag, bytes: count, filled: v.boolean() }),
  v.strictObject({ kind: v.literal("want"), tag, bytes: count, seen: count, offered: v.unknown() }),
  v.strictObject({ kind: v.literal("empty"), slot: count }),
  v.strictObject({ kind: v.literal("bye"), reason: v.nullable(v.string()) }),
]);
type Note = v.InferOutput<typeof note>;

type Arrival = { readonly slot: number; readonly bytes: number; readonly filled: boolean };
/** A tensor of the neighbour's that waits for a message. */
type Want = { readonly bytes: number; readonly offered: unknown };
type Waiting<T> = { readonly resolve: (value: T) => void; readonly reject: (error: Error) => void };

export type SlotLinkOptions = {
  readonly kind: LinkKind;
  /** What is at the other end, for messages: "stage 2". */
  readonly neighbour: string;
  readonly channel: Channel;
  readonly carrier: Carrier;
  /** Our slots, and the neighbour's. */
  readonly mine: Slots;
  readonly theirs: Slots;
  /** Ends the link, with its reason, which is a RunError. */
  readonly signal?: AbortSignal | undefined;
};

export class SlotLink implements Link {
  readonly kind: LinkKind;
  readonly #channel: Channel;
  readonly #carrier: Carrier;
  readonly #free: number[];
  readonly #senders: Waiting<number>[] = [];
  readonly #arrivals = new Map<string, Arrival[]>();
  readonly #receivers = new Map<string, Waiting<Arrival>[]>();
  readonly #full = new Set<number>(); // of our slots
  readonly #wants = new Map<string, Want[]>();
  #sent: readonly string[] = []; // the latest tags, as many as the neighbour may not have seen when it writes
  #sentCount = 0;
  #seen = 0; // messages of the neighbour's
  #putting = false;
  #copying = 0; // puts and takes that have begun and not ended
  #over: RunError | null = null; // nothing more comes or goes
  #closed = false;
  readonly #watching: Disposable | undefined;

  constructor(private readonly options: SlotLinkOptions) {
    this.kind = options.kind;
    this.#channel = options.channel;
    this.#carrier = options.carrier;
    this.#free = range(options.theirs.slots);
    const { signal } = options;
    this.#watching = signal && onAbort(signal, () => this.#fail(signal.reason as RunError));
    void this.#listen();
  }

  async send(tag: string, tensor: Tensor): Promise<void> {
    const bytes = tensorBytes(tensor);
    const { theirs, neighbour } = this.options;
    if (bytes > theirs.slotBytes)
      throw new RunError(
        "link.size",
        `'${tag}' has ${formatBytes(bytes)}, and ${neighbour} has room for messages of ${formatBytes(theirs.slotBytes)}`,
      );
    const slot = await this.#turn();
    if (this.#over) throw this.#over; // since then
    let told = false;
    const want = shift(this.#wants, tag);
    const filled = want?.bytes === bytes;
    const release = this.#hold();
    const announce = () => {
      told = this.#tell({ kind: "full", slot, tag, bytes, filled });
      this.#sent = [...this.#sent, tag].slice(-theirs.slots);
      this.#sentCount++;
      this.#putting = false;
      this.#grant();
    };
    try {
      await this.#carrier.put(slot, tensor, announce, filled ? want.offered : null);
    } catch (error) {
      throw this.#fail(asRunError(error, `sending '${tag}' to ${neighbour} failed`));
    } finally {
      release();
    }
    if (!told) throw this.#over;
  }

  async receive(tag: string, into: Tensor): Promise<void> {
    const bytes = tensorBytes(into);
    const { neighbour } = this.options;
    const arrival = await this.#arrival(tag, into, bytes);
    if (this.#closed) throw this.#over; // since then
    if (arrival.bytes !== bytes) {
      this.#deliver(tag, arrival, "first");
      const sizes = `${arrival.bytes} bytes, and ${bytes} bytes are expected: a tensor of [${into.shape}] ${into.dtype}`;
      throw new RunError("link.size", `${neighbour} sent '${tag}' with ${sizes}`);
    }
    const release = this.#hold();
    try {
      await this.#carrier.take(arrival.slot, into, arrival.filled);
    } catch (error) {
      throw this.#fail(asRunError(error, `receiving '${tag}' from ${neighbour} failed`));
    } finally {
      release();
    }
    this.#full.delete(arrival.slot);
    this.#tell({ kind: "empty", slot: arrival.slot });
  }

  [Symbol.dispose](): void {
    if (this.#closed) return;
    this.#leave(null);
    this.#fail(new RunError("link.closed", `the link to ${this.options.neighbour} was closed`));
  }

  /** A free slot of the neighbour's, for those who ask in turn. */
  #turn(): Promise<number> {
    if (this.#over) return Promise.reject(this.#over);
    return new Promise((resolve, reject) => {
      this.#senders.push({ resolve, reject });
      this.#grant();
    });
  }

  #grant(): void {
    if (this.#putting || this.#free.length === 0 || this.#over) return;
    const first = this.#senders.shift();
    if (!first) return;
    this.#putting = true;
    first.resolve(this.#free.shift()!);
  }

  async #arrival(tag: string, into: Tensor, bytes: number): Promise<Arrival> {
    const first = shift(this.#arrivals, tag);
    if (first) return first;
    if (this.#over) throw this.#over;
    const offered = this.#receivers.has(tag) ? null : (this.#carrier.offer?.(into) ?? null);
    if (offered !== null) this.#tell({ kind: "want", tag, bytes, seen: this.#seen, offered });
    try {
      return await new Promise((resolve, reject) => {
        this.#receivers.set(tag, [...(this.#receivers.get(tag) ?? []), { resolve, reject }]);
      });
    } finally {
      if (offered !== null) this.#carrier.settle?.(offered);
    }
  }

  /** To what waits for the tag, or will: after those of the tag that are there, or before them. */
  #deliver(tag: string, arrival: Arrival, place: "first" | "last"): void {
    const receiver = shift(this.#receivers, tag);
    const others = this.#arrivals.get(tag) ?? [];
    if (receiver) receiver.resolve(arrival);
    else this.#arrivals.set(tag, place === "last" ? [...others, arrival] : [arrival, ...others]);
  }

  async #listen(): Promise<void> {
    const { neighbour } = this.options;
    try {
      for (;;) {
        const message = await this.#channel.receive();
        if (this.#over) return;
        this.#hear(readNote(message));
      }
    } catch (error) {
      if (this.#over) return; // it said so before
      if (error instanceof RunError && error.code === "link.lost")
        this.#fail(new RunError("link.lost", `${neighbour} is gone: ${error.message}`));
      else this.#fail(asRunError(error, `the link to ${neighbour} failed`));
    }
  }

  #hear(heard: Note): void {
    const { neighbour, mine } = this.options;
    if (heard.kind === "bye") {
      const why = heard.reason === null ? "" : `: ${heard.reason}`;
      this.#end(new RunError("link.closed", `${neighbour} has closed the link${why}`));
    } else if (heard.kind === "full") {
      const { slot, tag, bytes, filled } = heard;
      this.#seen++;
      if (slot >= mine.slots || this.#full.has(slot) || bytes > mine.slotBytes)
        throw new RunError("link.protocol", `it put ${bytes} bytes into slot ${slot}, which is not free for them`);
      this.#full.add(slot);
      this.#carrier.expect?.(slot, bytes);
      this.#deliver(tag, { slot, bytes, filled }, "last");
    } else if (heard.kind === "want") {
      const { tag, bytes, seen, offered } = heard;
      const unseen = this.#sent.slice(Math.max(0, this.#sent.length - (this.#sentCount - seen)));
      if (!unseen.includes(tag)) this.#wants.set(tag, [{ bytes, offered }]); // else our message and this one crossed
    } else {
      const { slot } = heard;
      if (slot >= this.options.theirs.slots || this.#free.includes(slot))
        throw new RunError("link.protocol", `it emptied slot ${slot}, which was not full`);
      this.#free.push(slot);
      this.#grant();
    }
  }

  /** Keeps the carrier until it is released. */
  #hold(): () => void {
    this.#copying++;
    return () => {
      this.#copying--;
      if (this.#closed && this.#copying === 0) this.#carrier[Symbol.dispose]();
    };
  }

  /** False where the other end is gone. */
  #tell(what: Note): boolean {
    if (this.#over) return false;
    this.#channel.send(encode(what));
    return true;
  }

  #leave(reason: string | null): void {
    try {
      this.#tell({ kind: "bye", reason });
    } catch {
      // a neighbour that is gone need not be notified
    }
  }

  /** Nothing more comes or goes, but what has arrived can be had. */
  #end(error: RunError): RunError {
    if (this.#over) return this.#over;
    this.#over = error;
    for (const { reject } of this.#senders.splice(0)) reject(error);
    for (const waiting of this.#receivers.values()) for (const { reject } of waiting) reject(error);
    this.#receivers.clear();
    return error;
  }

  /** The end, for this end too. */
  #fail(error: RunError): RunError {
    if (!this.#over) this.#leave(error.message.slice(0, 500));
    const over = this.#end(error);
    if (this.#closed) return over;
    this.#closed = true;
    this.#watching?.[Symbol.dispose]();
    this.#channel[Symbol.dispose]();
    this.#carrier.stop?.();
    if (this.#copying === 0) this.#carrier[Symbol.dispose]();
    return over;
  }
}

/** The first of those under a key, which is not kept when it has no more. */
function shift<T>(lists: Map<string, T[]>, key: string): T | undefined {
  const list = lists.get(key);
  const first = list?.shift();
  if (list?.length === 0) lists.delete(key);
  return first;
}

function readNote(message: Uint8Array): Note {
  const result = v.safeParse(note, decode(message));
  if (result.success) return result.output;
  throw new RunError("link.protocol", `it sent what no link says: ${result.issues[0].message}`);
}

const asRunError = (error: unknown, what: string): RunError =>
  error instanceof RunError
    ? new RunError(error.code, `${what}: ${error.message}`, error.hint, { cause: error })
    : new RunError("link.failed", `${what}: ${textOf(error)}`, undefined, { cause: error });

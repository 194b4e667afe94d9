// Large messages over a wire that may lose pieces: cut into numbered chunks, put together where they belong, sent again from
// where they lie until they are confirmed. Nothing is copied but from the wire into its place.
//
// As in bus/channel.ts, nothing is sent again after a time, since a busy receiver answers late: the sender asks what has
// arrived, and a chunk that was sent before the question and is missing in the answer was lost.

import { now } from "../base/clock.ts";

/** Of the sizes that were measured, the fastest. */
const CHUNK_BYTES = 2 ** 20;
const WINDOW_BYTES = 8 * 2 ** 20;
export const PROBE_MS = 250;

/** What describes a piece, without its bytes. */
export type Head =
  /** A part of a message: what lies from byte `at` of its slot on; the last of those that were sent together. */
  | { readonly kind: "part" | "last"; readonly number: number; readonly slot: number; readonly at: number }
  /** What has arrived? */
  | { readonly kind: "probe"; readonly probe: number }
  /** All parts below `number`; `probe` is the latest question. */
  | { readonly kind: "answer"; readonly number: number; readonly probe: number };

export type Publish = (head: Head, bytes: Uint8Array) => void;

const NOTHING = new Uint8Array(0);

/** A part that may be on its way; `probes` were asked before it was sent. */
type Sent = { readonly head: Head & { readonly number: number }; readonly bytes: Uint8Array; probes: number };
/** Bytes to be sent, that lie from `at` of their slot on. */
export type Stretch = { readonly slot: number; readonly at: number; readonly bytes: Uint8Array };

export class BulkSender {
  readonly #queue: (Stretch & { done: number })[] = [];
  readonly #waiting: (() => void)[] = [];
  readonly #chunkBytes: number;
  #sent: Sent[] = []; // in order, not yet confirmed
  #onTheWay = 0; // bytes
  #numbers = 0;
  #probes = 0;
  #answered = 0;
  #heard = now();

  constructor(
    maxBytes: number,
    private readonly publish: Publish,
  ) {
    this.#chunkBytes = Math.min(CHUNK_BYTES, maxBytes);
  }

  /** Sends after all that was sent before; the bytes may not be changed until the slot is free again. */
  send(stretch: Stretch): void {
    this.#queue.push({ ...stretch, done: 0 });
    this.#pump();
  }

  /** Asks what has arrived: now. */
  ask(): void {
    if (this.#sent.length > 0) this.publish({ kind: "probe", probe: ++this.#probes }, NOTHING);
  }

  /** Asks where nothing has been heard for a while; to be called now and then. */
  look(): void {
    if (now() - this.#heard >= PROBE_MS) this.ask();
  }

  /** All parts below `number` have arrived; what was sent before question `probe` and is not among them was lost. */
  answered(number: number, probe: number): void {
    if (number > this.#numbers || probe > this.#probes) return; // not of this link
    const left = this.#sent.findIndex(({ head }) => head.number >= number);
    for (const { bytes } of this.#sent.splice(0, left < 0 ? this.#sent.length : left)) {
      this.#onTheWay -= bytes.length;
      this.#heard = now();
    }
    if (probe > this.#answered) {
      this.#answered = probe;
      for (const part of this.#sent)
        if (part.probes < probe) {
          part.probes = this.#probes;
          this.publish(part.head, part.bytes);
        }
    }
    this.#pump();
  }

  /** Resolves when all that was sent has arrived. */
  settled(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#pump();
    });
  }

  #pump(): void {
    for (let head = this.#queue[0]; head && this.#onTheWay < WINDOW_BYTES; head = this.#queue[0]) {
      const { slot } = head;
      const at = head.at + head.done;
      const bytes = head.bytes.subarray(head.done, head.done + this.#chunkBytes);
      head.done += bytes.length;
      const last = head.done === head.bytes.length;
      if (last) this.#queue.shift();
      if (this.#sent.length === 0) this.#heard = now();
      const part: Sent = {
        head: { kind: last ? "last" : "part", number: this.#numbers++, slot, at },
        bytes,
        probes: this.#probes,
      };
      this.#sent.push(part);
      this.#onTheWay += bytes.length;
      this.publish(part.head, bytes);
    }
    if (this.#sent.length === 0) for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

export type ReceiverOptions = {
  /** Our slots, as the sender numbers them. */
  readonly slots: readonly Uint8Array[];
  readonly publish: Publish;
  /** What was sent together is there: of this slot all below `end`. */
  readonly arrived: (slot: number, end: number) => void;
  /** Of the other direction: it gets the answers. */
  readonly sender: BulkSender;
};

/** What is done with pieces that come. */
export function bulkReceiver({ slots, publish, arrived, sender }: ReceiverOptions): Publish {
  let [next, probe] = [0, 0];
  let due = false;
  /** Once for all pieces that came together. */
  const answer = (): void => {
    if (due) return;
    due = true;
    queueMicrotask(() => {
      due = false;
      publish({ kind: "answer", number: next, probe }, NOTHING);
    });
  };
  return (head, bytes) => {
    if (head.kind === "answer") return sender.answered(head.number, head.probe);
    answer(); // also to what came too early, or twice: the sender may not know where we are
    if (head.kind === "probe") {
      probe = Math.max(probe, head.probe);
      return;
    }
    const { number, slot, at } = head;
    const into = slots[slot];
    if (number !== next || !into || at + bytes.length > into.length) return;
    into.set(bytes, at);
    next++;
    if (head.kind === "last") arrived(slot, at + bytes.length);
  };
}

/** A head as one token of a subject, and back; null for what is not one. */
export const writeHead = (head: Head): string => {
  if (head.kind === "probe") return `probe-${head.probe}`;
  if (head.kind === "answer") return `answer-${head.number}-${head.probe}`;
  return `${head.kind}-${head.number}-${head.slot}-${head.at}`;
};

export function readHead(token: string): Head | null {
  const [, kind, texts = ""] = /^([a-z]+)((?:-\d{1,15})+)$/.exec(token) ?? [];
  const numbers = texts.slice(1).split("-").map(Number);
  const [a = 0, b = 0, c = 0] = numbers;
  if (kind === "probe" && numbers.length === 1) return { kind, probe: a };
  if (kind === "answer" && numbers.length === 2) return { kind, number: a, probe: b };
  if ((kind === "part" || kind === "last") && numbers.length === 3) return { kind, number: a, slot: b, at: c };
  return null;
}

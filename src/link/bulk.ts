// Large messages over a wire that may lose pieces: cut into chunks, which go through a window (bus/window.ts), put together
// where they belong, sent again from where they lie. Nothing is copied but from the wire into its place.

import { CHUNK_BYTES, ReceiveWindow, SendWindow } from "../bus/window.ts";

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

/** Bytes to be sent, that lie from `at` of their slot on. */
export type Stretch = { readonly slot: number; readonly at: number; readonly bytes: Uint8Array };
type Part = Stretch & { readonly kind: "part" | "last" };

/** The sending end. Its `ask`, `look` and `settled` are those of its window. */
export class BulkSender {
  readonly window: SendWindow<Part>;
  readonly #queue: (Stretch & { done: number })[] = [];
  readonly #chunkBytes: number;

  constructor(maxBytes: number, publish: Publish) {
    this.#chunkBytes = Math.min(CHUNK_BYTES, maxBytes);
    this.window = new SendWindow({
      next: () => this.#next(),
      send: (number, { bytes, ...head }) => publish({ ...head, number }, bytes),
      probe: (probe) => publish({ kind: "probe", probe }, NOTHING),
    });
  }

  /** Sends after all that was sent before; the bytes may not be changed until the slot is free again. */
  send(stretch: Stretch): void {
    this.#queue.push({ ...stretch, done: 0 });
    this.window.pump();
  }

  #next(): Part | null {
    const [head] = this.#queue;
    if (!head) return null;
    const at = head.at + head.done;
    const bytes = head.bytes.subarray(head.done, head.done + this.#chunkBytes);
    head.done += bytes.length;
    const isLast = head.done === head.bytes.length;
    if (isLast) this.#queue.shift();
    return { kind: isLast ? "last" : "part", slot: head.slot, at, bytes };
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

/** What is done with pieces that come. An answer that cannot be is not of this link. */
export function bulkReceiver({ slots, publish, arrived, sender }: ReceiverOptions): Publish {
  const window = new ReceiveWindow((number, probe) => publish({ kind: "answer", number, probe }, NOTHING));
  return (head, bytes) => {
    if (head.kind === "answer") return void sender.window.acknowledge(head.number, head.probe);
    if (head.kind === "probe") return window.asked(head.probe);
    const { number, slot, at } = head;
    const into = slots[slot];
    if (!window.isNext(number) || !into || at + bytes.length > into.length) return;
    into.set(bytes, at);
    window.advance();
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

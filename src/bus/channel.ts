// Messages to one peer and from it, each exactly once and in order, over a wire that loses them: whatever their size, however
// often the connection is lost and found again.
//
// A message is cut into numbered chunks. The receiver takes the next number and nothing else, and says how far it has come;
// what it has not confirmed is kept by the sender, a window's worth at most, so that memory stays flat. Chunks are not sent
// again after a time, since a stage that computes does not read for seconds: the sender asks what has arrived, and a chunk that
// was sent before the question and is missing in the answer was lost.

import { now } from "../base/clock.ts";
import { invariant } from "../base/errors.ts";
import { type PacketOf, type Refuse, writePacket } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";

/** Of the sizes that were measured, the fastest. */
const CHUNK_BYTES = 2 ** 20;
const WINDOW_BYTES = 8 * 2 ** 20;
/** Room for the envelope of a chunk. */
const ENVELOPE_BYTES = 1024;
const PROBE_MS = 250;
/** Largest message that is put together: the memory is taken when its first chunk comes. */
const MESSAGE_BYTES = 2 ** 31;

export type ChannelPacket = PacketOf<"chunk"> | PacketOf<"probe"> | PacketOf<"ack">;

export type Channel = Disposable & {
  /** Sends after all that was sent before. The bytes are kept until they have arrived: they may not be changed. */
  readonly send: (message: Uint8Array) => void;
  /** Takes a packet that came from the peer. */
  readonly take: (packet: ChannelPacket) => void;
  /** Resolves when all that was sent has arrived, or the channel was closed. */
  readonly settled: () => Promise<void>;
};

export type ChannelOptions = {
  readonly connection: SealedConnection;
  readonly run: string;
  /** Where the peer listens. */
  readonly subject: string;
  /** The sessions of the two ends. */
  readonly from: string;
  readonly to: string;
  /** Called with each whole message; must not throw. */
  readonly deliver: (message: Uint8Array) => void;
  readonly refuse: Refuse;
};

/** A chunk that is on its way; `probes` were asked before it was sent. */
type Sent = { readonly number: number; readonly size: number | null; readonly bytes: Uint8Array; probes: number };

export function openChannel({ connection, run, subject, from, to, deliver, refuse }: ChannelOptions): Channel {
  const publish = (content: Parameters<typeof writePacket>[2]) => connection.publish(subject, writePacket(run, from, content));
  const outgoing = sender(Math.min(CHUNK_BYTES, connection.maxPayload - ENVELOPE_BYTES), {
    chunk: ({ number, size, bytes }) => publish({ kind: "chunk", to, number, size, bytes }),
    probe: (probe) => publish({ kind: "probe", to, probe }),
    refuse: (why) => refuse(`an answer from ${to} was refused: ${why}`),
  });
  const incoming = receiver({
    ack: (next, probe) => publish({ kind: "ack", to, next, probe }),
    deliver,
    refuse: (why) => refuse(`a chunk from ${to} was refused: ${why}`),
  });
  const watching = connection.watch((state) => {
    if (state === "back") outgoing.ask();
  });
  return {
    send: outgoing.send,
    take: (packet) => {
      if (packet.kind === "ack") outgoing.acknowledge(packet.next, packet.probe);
      else if (packet.kind === "probe") incoming.answer(packet.probe);
      else incoming.take(packet.number, packet.size, packet.bytes);
    },
    settled: outgoing.settled,
    [Symbol.dispose]: () => {
      watching[Symbol.dispose]();
      outgoing.close();
      incoming.close();
    },
  };
}

function sender(
  chunkBytes: number,
  wire: { chunk: (sent: Sent) => void; probe: (probe: number) => void; refuse: (why: string) => void },
) {
  const queue: { readonly message: Uint8Array; at: number }[] = [];
  let sent: Sent[] = []; // in order, not yet confirmed
  let [numbers, onTheWay, probes, answered] = [0, 0, 0, 0];
  let heard = now();
  let timer: ReturnType<typeof setInterval> | null = null;
  const waiting: (() => void)[] = [];
  let closed = false;

  const send = (message: Uint8Array): void => {
    invariant(message.length > 0 && message.length <= MESSAGE_BYTES, `a message of ${message.length} bytes`);
    if (closed) return;
    queue.push({ message, at: 0 });
    pump();
  };
  const pump = (): void => {
    for (let head = queue[0]; head && onTheWay < WINDOW_BYTES; head = queue[0]) {
      const bytes = head.message.subarray(head.at, head.at + chunkBytes);
      const chunk: Sent = { number: numbers++, size: head.at === 0 ? head.message.length : null, bytes, probes };
      if (sent.length === 0) heard = now();
      sent.push(chunk);
      onTheWay += bytes.length;
      head.at += bytes.length;
      if (head.at === head.message.length) queue.shift();
      wire.chunk(chunk);
    }
    timer ??= setInterval(look, PROBE_MS);
  };
  const look = (): void => {
    if (sent.length > 0 && now() - heard >= PROBE_MS) ask();
  };
  const ask = (): void => {
    if (sent.length > 0 && !closed) wire.probe(++probes);
  };
  const acknowledge = (next: number, probe: number): void => {
    if (closed) return;
    if (next > numbers || probe > probes) {
      wire.refuse(`it confirms chunk ${next - 1} of ${numbers}, question ${probe} of ${probes}`);
      return;
    }
    const left = sent.findIndex(({ number }) => number >= next);
    const arrived = sent.splice(0, left < 0 ? sent.length : left);
    for (const { bytes } of arrived) onTheWay -= bytes.length;
    if (arrived.length > 0) heard = now();
    if (probe > answered) {
      answered = probe;
      for (const chunk of sent.filter(({ probes }) => probes < probe)) {
        chunk.probes = probes;
        wire.chunk(chunk);
      }
    }
    pump();
    if (sent.length === 0) rest();
  };
  /** Nothing is on its way. */
  const rest = (): void => {
    if (timer !== null) clearInterval(timer);
    timer = null;
    for (const resolve of waiting.splice(0)) resolve();
  };
  const close = (): void => {
    closed = true;
    queue.length = 0;
    sent = [];
    rest();
  };
  const settled = (): Promise<void> =>
    sent.length === 0 ? Promise.resolve() : new Promise((resolve) => waiting.push(resolve));
  return { send, ask, acknowledge, settled, close };
}

function receiver(wire: {
  ack: (next: number, probe: number) => void;
  deliver: (message: Uint8Array) => void;
  refuse: (why: string) => void;
}) {
  let [next, probe] = [0, 0];
  let whole: { readonly bytes: Uint8Array; filled: number } | null = null; // the message that is being put together
  let due = false;
  let closed = false;

  /** Once for all chunks that came in one piece. */
  const confirm = (): void => {
    if (due || closed) return;
    due = true;
    queueMicrotask(() => {
      due = false;
      if (!closed) wire.ack(next, probe);
    });
  };
  const answer = (asked: number): void => {
    probe = Math.max(probe, asked);
    confirm();
  };
  const take = (number: number, size: number | null, bytes: Uint8Array): void => {
    if (closed) return;
    confirm(); // also of one that was known, or came too early: the sender may not know where we are
    if (number !== next) return;
    const left = whole ? whole.bytes.length - whole.filled : (size ?? 0);
    if ((whole === null) !== (size !== null) || bytes.length === 0 || bytes.length > left || left > MESSAGE_BYTES) {
      wire.refuse(`chunk ${number} has ${bytes.length} bytes, its message ${size ?? left}`);
      return;
    }
    next++;
    const message = bytes.length === size ? bytes : add(bytes, left);
    if (message) wire.deliver(message);
  };
  /** The message, when this piece makes it whole; `left` are the bytes that it lacked. */
  const add = (piece: Uint8Array, left: number): Uint8Array | null => {
    whole ??= { bytes: new Uint8Array(new ArrayBuffer(left)), filled: 0 };
    whole.bytes.set(piece, whole.filled);
    whole.filled += piece.length;
    if (whole.filled < whole.bytes.length) return null;
    const { bytes } = whole;
    whole = null;
    return bytes;
  };
  const close = (): void => {
    closed = true;
    whole = null;
  };
  return { answer, take, close };
}

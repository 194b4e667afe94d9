// Messages to one peer and from it, each exactly once and in order, over a wire that loses them: whatever their size, however
// often the connection is lost and found again. A message is cut into chunks, which go through a window (window.ts).

import { invariant } from "../base/errors.ts";
import { type PacketOf, type Refuse, writePacket } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";
import { CHUNK_BYTES, PROBE_MS, ReceiveWindow, SendWindow } from "./window.ts";

/** Room for the envelope of a chunk. */
const ENVELOPE_BYTES = 1024;
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

/** A piece of a message: the first has the message's `size`. */
type Chunk = { readonly size: number | null; readonly bytes: Uint8Array };

export function openChannel({ connection, run, subject, from, to, deliver, refuse }: ChannelOptions): Channel {
  const publish = (content: Parameters<typeof writePacket>[2]) => connection.publish(subject, writePacket(run, from, content));
  const outgoing = sender(Math.min(CHUNK_BYTES, connection.maxPayload - ENVELOPE_BYTES), {
    chunk: (number, { size, bytes }) => publish({ kind: "chunk", to, number, size, bytes }),
    probe: (probe) => publish({ kind: "probe", to, probe }),
    refuse: (why) => refuse(`an answer from ${to} was refused: ${why}`),
  });
  const incoming = receiver({
    ack: (next, probe) => publish({ kind: "ack", to, next, probe }),
    deliver,
    refuse: (why) => refuse(`a chunk from ${to} was refused: ${why}`),
  });
  const watching = connection.watch((state) => {
    if (state === "back") outgoing.window.ask();
  });
  return {
    send: outgoing.send,
    take: (packet) => {
      if (packet.kind === "ack") outgoing.acknowledge(packet.next, packet.probe);
      else if (packet.kind === "probe") incoming.window.asked(packet.probe);
      else incoming.take(packet.number, packet.size, packet.bytes);
    },
    settled: () => outgoing.window.settled(),
    [Symbol.dispose]: () => {
      watching[Symbol.dispose]();
      outgoing.close();
      incoming.close();
    },
  };
}

function sender(
  chunkBytes: number,
  wire: { chunk: (number: number, chunk: Chunk) => void; probe: (probe: number) => void; refuse: (why: string) => void },
) {
  const queue: { readonly message: Uint8Array; at: number }[] = [];
  let timer: ReturnType<typeof setInterval> | null = null;
  let closed = false;
  const next = (): Chunk | null => {
    const [head] = queue;
    if (!head) return null;
    const bytes = head.message.subarray(head.at, head.at + chunkBytes);
    const size = head.at === 0 ? head.message.length : null;
    head.at += bytes.length;
    if (head.at === head.message.length) queue.shift();
    return { size, bytes };
  };
  const window = new SendWindow<Chunk>({ next, send: wire.chunk, probe: wire.probe });
  const send = (message: Uint8Array): void => {
    invariant(message.length > 0 && message.length <= MESSAGE_BYTES, `a message of ${message.length} bytes`);
    if (closed) return;
    queue.push({ message, at: 0 });
    window.pump();
    timer ??= setInterval(() => window.look(), PROBE_MS);
  };
  const acknowledge = (next: number, probe: number): void => {
    if (closed) return;
    const fault = window.acknowledge(next, probe);
    if (fault !== null) wire.refuse(fault);
    if (window.isEmpty) rest();
  };
  /** Nothing is on its way. */
  const rest = (): void => {
    if (timer !== null) clearInterval(timer);
    timer = null;
  };
  const close = (): void => {
    closed = true;
    queue.length = 0;
    window.clear();
    rest();
  };
  return { window, send, acknowledge, close };
}

function receiver(wire: {
  ack: (next: number, probe: number) => void;
  deliver: (message: Uint8Array) => void;
  refuse: (why: string) => void;
}) {
  let whole: { readonly bytes: Uint8Array; filled: number } | null = null; // the message that is being put together
  let closed = false;
  const window = new ReceiveWindow((next, probe) => {
    if (!closed) wire.ack(next, probe);
  });
  const take = (number: number, size: number | null, bytes: Uint8Array): void => {
    if (closed || !window.isNext(number)) return;
    const left = whole ? whole.bytes.length - whole.filled : (size ?? 0);
    if ((whole === null) !== (size !== null) || bytes.length === 0 || bytes.length > left || left > MESSAGE_BYTES) {
      wire.refuse(`chunk ${number} has ${bytes.length} bytes, its message ${size ?? left}`);
      return;
    }
    window.advance();
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
  return { window, take, close };
}

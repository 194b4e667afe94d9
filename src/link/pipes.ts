// A channel between two processes of one machine, by a pipe in each direction: a message is with the neighbour as soon as it is
// sent, also when this process computes from then on and does not come back to its event loop; and when a process ends,
// however that is, its neighbour knows at once.

import { RunError, textOf } from "../base/errors.ts";
import { createPipe, type OpenFile, openPipe, PIPE_BYTES } from "../device/shared.ts";
import { type Channel, Queue } from "./channel.ts";

/** Before each message, its length. */
const HEADER = 2;

/** The half that receives; `connect` makes it whole with the pipe of the neighbour's other half. */
export function openPipes(): { readonly file: OpenFile; connect(neighbour: OpenFile): PipeChannel } & Disposable {
  const reader = createPipe();
  return {
    file: reader.file,
    [Symbol.dispose]: reader[Symbol.dispose],
    connect(neighbour) {
      const writer = openPipe(neighbour);
      const queue = new Queue<Uint8Array>();
      void messages(reader.pieces(), queue);
      return {
        seal: reader.seal,
        send(message) {
          const framed = new Uint8Array(HEADER + message.length);
          new DataView(framed.buffer).setUint16(0, message.length, true);
          framed.set(message, HEADER);
          if (framed.length > PIPE_BYTES) throw new RunError("link.pipe", `a message of ${message.length} bytes for a pipe`);
          writer.write(framed);
        },
        receive: () => queue.next(),
        [Symbol.dispose]: () => {
          writer[Symbol.dispose]();
          reader[Symbol.dispose]();
          queue.end(new RunError("link.closed", "the channel was closed"));
        },
      };
    },
  };
}

export type PipeChannel = Channel & {
  /** To be called once the neighbour has its end: from now on the channel ends with its process. */
  readonly seal: () => void;
};

async function messages(pieces: AsyncIterable<Uint8Array>, queue: Queue<Uint8Array>): Promise<void> {
  let rest = new Uint8Array(0);
  try {
    for await (const piece of pieces) {
      rest = rest.length === 0 ? piece.slice() : joined(rest, piece);
      for (let length = lengthOf(rest); length !== null; length = lengthOf(rest)) {
        queue.push(rest.slice(HEADER, HEADER + length));
        rest = rest.subarray(HEADER + length);
      }
    }
    queue.end(new RunError("link.lost", "its process has ended, or closed the link without a word"));
  } catch (error) {
    queue.end(new RunError("link.lost", `its pipe cannot be read: ${textOf(error)}`, undefined, { cause: error }));
  }
}

/** The length of the first message, null while it is not whole. */
function lengthOf(bytes: Uint8Array): number | null {
  if (bytes.length < HEADER) return null;
  const length = bytes[0]! + 256 * bytes[1]!;
  return bytes.length < HEADER + length ? null : length;
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

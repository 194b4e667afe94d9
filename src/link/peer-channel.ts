// What two neighbouring stages have of the bus for themselves: a channel for small messages, which loses none.

import { onAbort } from "../base/abort.ts";
import { sleep } from "../base/clock.ts";
import { RunError } from "../base/errors.ts";
import { log } from "../base/log.ts";
import type { Address } from "../bus/address.ts";
import { openChannel } from "../bus/channel.ts";
import { readPacket } from "../bus/packets.ts";
import type { RunKey, SealedConnection } from "../bus/seal.ts";
import { subjectsOf } from "../bus/subjects.ts";
import { type Channel, Queue } from "./channel.ts";

/** Two stages of a run, by their numbers: this one, and the one at the other end. */
export type Pair = { readonly run: string; readonly stage: number; readonly neighbour: number };

/** And how to get on their bus; secret. */
export type BusPair = Pair & { readonly address: Address; readonly key: RunKey };

/** How long what was sent may take to arrive after the channel was closed. */
const LINGER_MS = 1_000;

export type BusChannel = Channel & {
  /** The same as disposing; resolves when what was sent has arrived, or cannot. The connection must live until then. */
  readonly close: () => Promise<void>;
};

/** Opens our end; `channelId` keeps several channels of a pair apart. It is over when the connection is. */
export function busChannel(connection: SealedConnection, { run, stage, neighbour }: Pair, channelId: string): BusChannel {
  const subjects = subjectsOf(run);
  const queue = new Queue<Uint8Array>();
  const [from, to] = [sessionOf(stage, neighbour), sessionOf(neighbour, stage)];
  const refuse = (text: string) => log(0, () => `warning: ${text}`);
  const channel = openChannel({
    connection,
    run,
    subject: subjects.link(stage, neighbour, channelId),
    from,
    to,
    deliver: (message) => queue.push(message),
    refuse,
  });
  const subscription = connection.subscribe(subjects.link(neighbour, stage, channelId), (bytes, subject) => {
    const packet = readPacket(bytes, subject, run, refuse);
    if (!packet || packet.from !== to || !("to" in packet) || packet.to !== from || packet.kind === "bye") return;
    channel.take(packet);
  });
  const watching = onAbort(connection.over, () => queue.end(connection.over.reason as RunError));
  const close = async (): Promise<void> => {
    watching[Symbol.dispose]();
    queue.end(new RunError("link.closed", "the channel was closed"));
    await Promise.race([channel.settled(), sleep(LINGER_MS)]);
    await sleep(1); // for the answer to what came last
    subscription[Symbol.dispose]();
    channel[Symbol.dispose]();
  };
  return {
    send: (message) => channel.send(message),
    receive: () => queue.next(),
    close,
    [Symbol.dispose]: () => void close(),
  };
}

/** A name for an end of a pair's channel, as the bus's packets carry it. */
const sessionOf = (from: number, to: number): string => `link${from}to${to}`;

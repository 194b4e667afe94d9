// The thread that carries a link's messages over the bus, on a connection of its own: so they go and come while the main thread
// computes, and no neighbour waits for that. Started by nats.ts, with which it shares the memory of the slots.

import { parentPort } from "node:worker_threads";
import { sleep } from "../base/clock.ts";
import { MloraError, textOf } from "../base/errors.ts";
import { connectSealed } from "../bus/seal.ts";
import { subjectsOf } from "../bus/subjects.ts";
import { PROBE_MS } from "../bus/window.ts";
import { hostBytes } from "../device/shared.ts";
import { BulkSender, bulkReceiver, type Publish, readHead, writeHead } from "./bulk.ts";
import { type BusPair, busChannel } from "./peer-channel.ts";

/** The address and the size of a slot. */
export type Place = { readonly address: number; readonly bytes: number };

export type ToTransport =
  | {
      readonly type: "start";
      readonly pair: BusPair;
      /** A name that no other link of the pair has. */
      readonly channelId: string;
      /** Where our messages come to, and where those for the neighbour lie. */
      readonly inbox: readonly Place[];
      readonly outbox: readonly Place[];
    }
  | { readonly type: "note"; readonly note: Uint8Array }
  | { readonly type: "send"; readonly slot: number; readonly at: number; readonly end: number }
  | { readonly type: "close" };

export type FromTransport =
  | { readonly type: "ready" | "closed" }
  | { readonly type: "note"; readonly note: Uint8Array }
  | { readonly type: "arrived"; readonly slot: number; readonly end: number }
  | { readonly type: "over"; readonly code: string; readonly message: string; readonly hint: string | undefined };

/** How long what was sent may take to arrive once the link is closed. */
const LINGER_MS = 10_000;

const post = (message: FromTransport): void => parentPort?.postMessage(message);

function fail(error: unknown): void {
  const { code, hint } = error instanceof MloraError ? error : { code: "link.worker", hint: undefined };
  post({ type: "over", code, message: textOf(error), hint });
}

type TransportWorker = {
  readonly note: (note: Uint8Array) => void;
  readonly send: (slot: number, at: number, end: number) => void;
};
let worker: TransportWorker | null = null;
const open = new AsyncDisposableStack();

parentPort?.on("message", (message: ToTransport) => {
  if (message.type === "start") void start(message).catch(fail);
  else if (message.type === "note") worker?.note(message.note);
  else if (message.type === "send") worker?.send(message.slot, message.at, message.end);
  else void open.disposeAsync().finally(() => post({ type: "closed" }));
});

async function start({ pair, channelId, inbox, outbox }: Extract<ToTransport, { type: "start" }>): Promise<void> {
  const { address, key, run, stage, neighbour } = pair;
  const connection = open.use(await connectSealed(address, `mlora ${run} link ${stage} ${neighbour}`, key));
  connection.over.addEventListener("abort", () => fail(connection.over.reason));
  const subjects = subjectsOf(run);
  const to = subjects.link(stage, neighbour, `bulk-${channelId}`);
  const from = subjects.link(neighbour, stage, `bulk-${channelId}`);
  const publish: Publish = (head, bytes) => connection.publish(`${to}.${writeHead(head)}`, bytes);
  const viewOf = ({ address, bytes }: Place) => hostBytes(address, bytes);
  const views = outbox.map(viewOf);
  const sender = new BulkSender(connection.maxPayload, publish);
  const arrived = (slot: number, end: number) => post({ type: "arrived", slot, end });
  const take = bulkReceiver({ slots: inbox.map(viewOf), publish, arrived, sender });
  const subscription = connection.subscribe(`${from}.*`, (bytes, subject) => {
    const head = readHead(subject.slice(from.length + 1));
    if (head) take(head, bytes);
  });
  open.use(subscription);
  open.use(connection.watch((state) => state === "back" && sender.window.ask()));
  const timer = setInterval(() => sender.window.look(), PROBE_MS);
  open.defer(() => clearInterval(timer));
  const channel = busChannel(connection, pair, `notes-${channelId}`);
  open.defer(() => channel.close());
  open.defer(() => Promise.race([sender.window.settled(), sleep(LINGER_MS)]));
  await connection.flush();
  worker = {
    note: (note) => channel.send(note),
    send: (slot, at, end) => sender.send({ slot, at, bytes: views[slot]!.subarray(at, end) }),
  };
  post({ type: "ready" });
  for (;;) post({ type: "note", note: await channel.receive() });
}

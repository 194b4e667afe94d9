// One end of the bus over NATS, of the coordinator or of a stage: its session, its heartbeat, packets that it sends, receives
// and refuses.

import { onAbort } from "../base/abort.ts";
import { RunError } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { randomText } from "../base/secret.ts";
import { type Channel, openChannel } from "./channel.ts";
import { type Heartbeat, startHeartbeat } from "./heartbeat.ts";
import { type Received, type Refuse, readPacket, SILENCE_MS, writePacket } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";
import { type Subjects, subjectsOf } from "./subjects.ts";

/** Texts of refusals that are kept, each once: the sender of one wrong message sends many. */
const MOST_REFUSED = 100;

export class Endpoint implements AsyncDisposable {
  readonly session = randomText(20);
  readonly subjects: Subjects;
  readonly #refused = new Set<string>();
  readonly #open = new DisposableStack();
  #heartbeat: Heartbeat | null = null;

  constructor(
    readonly connection: SealedConnection,
    readonly run: string,
    private readonly warn: Refuse = (text) => log(0, () => `warning: ${text}`),
  ) {
    this.subjects = subjectsOf(run);
  }

  /**
   * Starts the heartbeat. `lost` is called with what ends the connection, or when the server is silent; `silent` with a watched
   * session that is.
   */
  async start(lost: (error: RunError) => void, silent: (session: string) => void): Promise<void> {
    const { connection } = this;
    this.#open.use(onAbort(connection.over, () => lost(connection.over.reason as RunError)));
    const serverIsSilent = () =>
      new RunError(
        "nats.silent",
        `the NATS server at ${connection.server} has not answered for ${SILENCE_MS / 1000} s`,
        "see whether it runs, and whether the network to it is up",
      );
    this.#heartbeat = await startHeartbeat(connection, this.run, this.session, (session) =>
      session === null ? lost(serverIsSilent()) : silent(session),
    );
  }

  /** Refusals so far. */
  get refused(): readonly string[] {
    return [...this.#refused];
  }

  refuse(text: string): void {
    if (this.#refused.has(text) || this.#refused.size >= MOST_REFUSED) return;
    this.#refused.add(text);
    this.warn(text);
  }

  /** `receive` gets the packets of this run on `subject`. */
  listen(subject: string, receive: (packet: Received, subject: string) => void): void {
    const read = (bytes: Uint8Array, on: string) => {
      const packet = readPacket(bytes, on, this.run, (text) => this.refuse(text));
      if (packet) receive(packet, on);
    };
    this.#open.use(this.connection.subscribe(subject, read));
  }

  send(subject: string, content: Parameters<typeof writePacket>[2]): void {
    this.connection.publish(subject, writePacket(this.run, this.session, content));
  }

  /** A channel to the session `to`, which listens on `subject`; from now on it is expected to beat. */
  channelTo(to: string, subject: string, deliver: (message: Uint8Array) => void): Channel {
    const { connection, run, session: from } = this;
    this.#heartbeat?.watch(to);
    return openChannel({ connection, run, subject, from, to, deliver, refuse: (text) => this.refuse(text) });
  }

  forget(session: string): void {
    this.#heartbeat?.forget(session);
  }

  /** Ends subscriptions at once, then, after `farewell`, the heartbeat. */
  async close(farewell: () => Promise<unknown> = async () => undefined): Promise<void> {
    this.#open.dispose();
    await farewell();
    await this.#heartbeat?.[Symbol.asyncDispose]();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The error of a peer that misses its heartbeats. */
export const goneError = (who: string): RunError =>
  new RunError(
    "bus.gone",
    `${who} has not been heard of for ${SILENCE_MS / 1000} s`,
    "it hangs, is dead, or has lost its network",
  );

// The coordinator's side of the bus over NATS: lets stages in, sends them requests, and notices when one is gone.

import { hostname } from "node:os";
import * as v from "valibot";
import { sleep } from "../base/clock.ts";
import type { DeviceReport } from "../base/device-report.ts";
import { invariant, type MloraError, RunError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { randomText } from "../base/secret.ts";
import { VERSION } from "../base/version.ts";
import type { Bus } from "./bus.ts";
import { type Channel, openChannel } from "./channel.ts";
import { errorFrom, readAnswer, writeAsk } from "./exchange.ts";
import { type Heartbeat, startHeartbeat } from "./heartbeat.ts";
import { type RequestOf, type RequestType, replySchema, type StageReply } from "./messages.ts";
import { issuesOf, type PacketOf, type Received, type Refuse, readPacket, SILENCE_MS, writePacket } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";
import { type Subjects, subjectsOf } from "./subjects.ts";

/** A stage that has joined. */
export type StageInfo = {
  readonly stage: number;
  readonly host: string;
  readonly pid: number;
  readonly report: DeviceReport;
};

export interface NatsBus extends Bus {
  readonly infos: readonly StageInfo[];
  readonly connection: SealedConnection;
  /** Aborted, with the first RunError, when a stage, the server or the connection is gone: the run cannot go on. */
  readonly lost: AbortSignal;
  /** For what is known otherwise, as that a stage's process has ended: its requests fail with this, those to come as well. */
  readonly fail: (stage: number, error: MloraError) => void;
}

export type GatherOptions = {
  /** How long stages have to join. */
  readonly joinMs: number;
  /** Places below this are for stages that ask for them by number. */
  readonly reserved?: number;
  /** Ends the waiting; its reason is thrown. */
  readonly signal?: AbortSignal;
  /** Told of every message that is refused, and of stages that may not join. */
  readonly refuse?: Refuse;
};

/** How long the last messages may take to get to the server. */
const FAREWELL_MS = 500;

type Pending = {
  readonly type: RequestType;
  readonly resolve: (value: never) => void;
  readonly reject: (error: Error) => void;
};

/** A stage's place, from when it is welcomed. */
type Place = {
  readonly info: StageInfo;
  readonly session: string;
  readonly channel: Channel;
  readonly pending: Map<number, Pending>;
  sealed: boolean;
  requests: number;
  failure: MloraError | null;
};

/**
 * Waits until `stages` stages of this run have joined and returns the bus to them; who joins without a place of its own gets the
 * lowest that is free. Disposing tells the stages that they are done; the connection stays. Throws a RunError, `bus.join`, when
 * not all have come in time, and what `lost` would tell.
 */
export async function natsBus(
  connection: SealedConnection,
  run: string,
  stages: number,
  options: GatherOptions,
): Promise<NatsBus> {
  const bus = new Gathering(connection, run, stages, options.refuse ?? ((text) => log(0, () => `warning: ${text}`)));
  try {
    await bus.gather(options);
    return bus;
  } catch (error) {
    await bus[Symbol.asyncDispose]();
    throw error;
  }
}

class Gathering implements NatsBus {
  readonly #session = randomText(20);
  readonly #subjects: Subjects;
  readonly #places = new Map<number, Place>();
  readonly #lost = new AbortController();
  readonly #all = Promise.withResolvers<void>();
  readonly #refused = new Set<string>();
  readonly #open = new DisposableStack();
  #heartbeat: Heartbeat | null = null;
  #reserved = 0;
  #closed = false;

  constructor(
    readonly connection: SealedConnection,
    readonly run: string,
    readonly stages: number,
    private readonly warn: Refuse,
  ) {
    this.#subjects = subjectsOf(run);
    this.#all.promise.catch(() => undefined); // it may fail before or after somebody waits
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  get infos(): readonly StageInfo[] {
    return [...this.#places.values()].map(({ info }) => info).sort((a, b) => a.stage - b.stage);
  }

  async gather({ joinMs, reserved = 0, signal }: GatherOptions): Promise<void> {
    this.#reserved = reserved;
    const { connection, run } = this;
    const over = () => this.#failAll(connection.over.reason as MloraError);
    if (connection.over.aborted) over();
    connection.over.addEventListener("abort", over);
    this.#open.defer(() => connection.over.removeEventListener("abort", over));
    this.#heartbeat = await startHeartbeat(connection, run, this.#session, (session) => this.#silent(session));
    const receive = (bytes: Uint8Array, subject: string) => this.#receive(bytes, subject);
    this.#open.use(connection.subscribe(this.#subjects.coordinator, receive));
    this.#open.use(connection.subscribe(this.#subjects.hello, receive));
    await connection.flush();

    const stop = () => this.#all.reject(signal!.reason);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop);
    const timer = setTimeout(() => this.#all.reject(this.#notAll(joinMs)), joinMs);
    try {
      await this.#all.promise;
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }

  request<T extends RequestType>(stage: number, request: RequestOf<T>): Promise<StageReply[T]> {
    const place = this.#places.get(stage);
    invariant(place, `a request to stage ${stage} of ${this.stages}`);
    if (place.failure) return Promise.reject(place.failure);
    const { promise, resolve, reject } = Promise.withResolvers<StageReply[T]>();
    const id = place.requests++;
    place.pending.set(id, { type: request.type, resolve, reject });
    place.channel.send(writeAsk(id, request));
    return promise;
  }

  fail(stage: number, error: MloraError): void {
    const place = this.#places.get(stage);
    if (place) this.#failPlace(place, error);
    else this.#failAll(error); // it has not come yet, and never will
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    const error = new RunError("bus.closed", "the run has ended");
    for (const { info, session, channel, pending } of this.#places.values()) {
      channel[Symbol.dispose]();
      this.#send(this.#subjects.stage(info.stage), { kind: "bye", to: session, reason: null });
      for (const { reject } of pending.values()) reject(error);
      pending.clear();
    }
    this.#open.dispose();
    const said = this.connection.flush().catch(() => undefined);
    await Promise.race([said, sleep(FAREWELL_MS)]); // who does not hear it misses our beats
    await this.#heartbeat?.[Symbol.asyncDispose]();
  }

  #send(subject: string, content: Parameters<typeof writePacket>[2]): void {
    this.connection.publish(subject, writePacket(this.run, this.#session, content));
  }

  /** Each text once: who sends one wrong message sends many. */
  #refuse(text: string): void {
    if (this.#refused.has(text) || this.#refused.size >= 100) return;
    this.#refused.add(text);
    this.warn(text);
  }

  #receive(bytes: Uint8Array, subject: string): void {
    const packet = readPacket(bytes, subject, this.run, (text) => this.#refuse(text));
    if (!packet) return;
    const { from, kind } = packet;
    const place = [...this.#places.values()].find(({ session }) => session === from);
    if (kind === "hello") this.#greet(packet);
    else if (!place || !("to" in packet) || packet.to !== this.#session)
      this.#refuse(
        `a message (${kind}) on ${subject} from ${from} was refused: it is ${place ? "not for us" : "from no stage"}`,
      );
    else if (place.failure) return;
    else if (kind === "bye") this.#failPlace(place, leftError(place, packet.reason));
    else place.channel.take(packet);
  }

  /** Lets a stage in, or says why not. */
  #greet(hello: PacketOf<"hello"> & Pick<Received, "from">): void {
    const known = [...this.#places.values()].find(({ session }) => session === hello.from);
    const place = known ?? this.#admit(hello);
    if (!place || place.failure) return;
    if (hello.coordinator !== null && hello.coordinator !== this.#session) {
      this.#refuse(`${hello.host}, process ${hello.pid}, obeys another coordinator of the run ${this.run}`);
      return;
    }
    if (hello.coordinator !== null && !place.sealed) {
      place.sealed = true;
      if ([...this.#places.values()].filter(({ sealed }) => sealed).length === this.stages) this.#all.resolve();
    }
    const { stages } = this;
    this.#send(this.#subjects.welcome(hello.from), {
      kind: "welcome",
      host: hostname(),
      pid: process.pid,
      stage: place.info.stage,
      stages,
      sealed: place.sealed,
    });
  }

  #admit({ from, version, host, pid, stage: wanted, report }: PacketOf<"hello"> & Pick<Received, "from">): Place | null {
    const who = `${host}, process ${pid}`;
    const reject = (code: string, message: string, hint: string): null => {
      this.#send(this.#subjects.welcome(from), { kind: "refusal", code, message, hint });
      this.#refuse(`${who} may not join: ${message}`);
      return null;
    };
    if (version !== VERSION)
      return reject(
        "bus.version",
        `the stage is mlora ${version}, the coordinator ${VERSION}`,
        "put the same mlora on both machines",
      );
    const free = Array.from({ length: this.stages }, (_, i) => i).filter((i) => !this.#places.has(i));
    const stage = wanted ?? free.find((i) => i >= this.#reserved);
    if (stage === undefined)
      return reject("bus.full", `the run ${this.run} has all its ${this.stages} stages`, "start no more of them");
    if (stage >= this.stages)
      return reject(
        "bus.place",
        `there is no stage ${stage}: the run ${this.run} has ${this.stages}, numbered from 0`,
        "leave the number out",
      );
    const holder = this.#places.get(stage);
    if (holder)
      return reject("bus.place", `stage ${stage} is ${whoIs(holder)} already`, "leave the number out, or start no more stages");
    const channel = openChannel({
      connection: this.connection,
      run: this.run,
      subject: this.#subjects.stage(stage),
      from: this.#session,
      to: from,
      deliver: (message) => this.#answered(place, message),
      refuse: (text) => this.#refuse(text),
    });
    const info = { stage, host, pid, report };
    const place: Place = { info, session: from, channel, pending: new Map(), sealed: false, requests: 0, failure: null };
    this.#places.set(stage, place);
    this.#heartbeat?.watch(from);
    return place;
  }

  #answered(place: Place, message: Uint8Array): void {
    let pending: Pending | undefined;
    try {
      const answer = readAnswer(message);
      pending = place.pending.get(answer.id);
      if (!pending) throw new Error(`it answers request ${answer.id}, which was not made or has its answer`);
      place.pending.delete(answer.id);
      if ("failure" in answer) pending.reject(errorFrom(answer.failure, whoIs(place)));
      else pending.resolve(checkReply(place, pending.type, answer.value) as never);
    } catch (error) {
      if (pending) pending.reject(error as Error);
      else this.#refuse(`an answer of ${whoIs(place)} was refused: ${textOf(error)}`);
    }
  }

  #silent(session: string | null): void {
    const seconds = SILENCE_MS / 1000;
    const place = [...this.#places.values()].find((place) => place.session === session);
    if (session === null) {
      const message = `the NATS server at ${this.connection.server} has not answered for ${seconds} s`;
      this.#failAll(new RunError("nats.silent", message, "see whether it runs, and whether the network to it is up"));
    } else if (place?.sealed) {
      const message = `${whoIs(place)} has not been heard of for ${seconds} s`;
      this.#failPlace(place, new RunError("bus.gone", message, "it hangs, is dead, or has lost its network"));
    } else if (place) this.#forget(place); // it was on its way in: another may have its place
  }

  #forget(place: Place): void {
    place.channel[Symbol.dispose]();
    this.#places.delete(place.info.stage);
  }

  #failPlace(place: Place, error: MloraError): void {
    if (place.failure || this.#closed) return;
    place.failure = error;
    place.channel[Symbol.dispose]();
    this.#heartbeat?.forget(place.session);
    for (const { reject } of place.pending.values()) reject(error);
    place.pending.clear();
    this.#all.reject(error);
    this.#lost.abort(error);
  }

  #failAll(error: MloraError): void {
    if (this.#closed) return;
    this.#all.reject(error);
    this.#lost.abort(error);
    for (const place of this.#places.values()) this.#failPlace(place, error);
  }

  #notAll(joinMs: number): RunError {
    const missing = Array.from({ length: this.stages }, (_, i) => i).filter((i) => !this.#places.get(i)?.sealed);
    const refused = [...this.#refused].slice(0, 5).map((text) => `\n  ${text}`);
    const count = missing.length === 1 ? `stage ${missing[0]} has` : `stages ${missing.join(", ")} have`;
    return new RunError(
      "bus.join",
      `${count} not joined the run ${this.run} within ${joinMs / 1000} s${refused.join("")}`,
      `see what they say; on other machines they join with: mlora stage --nats URL --run ${this.run}`,
    );
  }
}

/** The value, if it is what a stage answers to such a request. */
function checkReply(place: Place, type: RequestType, value: unknown): unknown {
  const checked = v.safeParse(replySchema(type), value);
  if (checked.success) return checked.output;
  throw new RunError("bus.malformed", `${whoIs(place)} answered '${type}' wrongly: ${issuesOf(checked.issues)}`);
}

/** "stage 2 (host, process 71)" */
const whoIs = ({ info: { stage, host, pid } }: Pick<Place, "info">): string => `stage ${stage} (${host}, process ${pid})`;

const leftError = (place: Place, reason: string | null): RunError =>
  new RunError("bus.left", `${whoIs(place)} left the run${reason === null ? "" : `: ${reason}`}`);

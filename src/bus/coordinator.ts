// The coordinator's side of the bus over NATS: admits stages, sends them requests, and notices when one is gone.

import { hostname } from "node:os";
import * as v from "valibot";
import { onAbort } from "../base/abort.ts";
import { sleep } from "../base/clock.ts";
import type { DeviceReport } from "../base/device-report.ts";
import { invariant, type MloraError, RunError, textOf } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import { counted } from "../base/units.ts";
import { VERSION } from "../base/version.ts";
import type { Bus } from "./bus.ts";
import type { Channel } from "./channel.ts";
import { Endpoint, goneError } from "./endpoint.ts";
import { errorFrom, readAnswer, writeAsk } from "./exchange.ts";
import { type RequestOf, type RequestType, replySchema, type StageReply } from "./messages.ts";
import { issuesOf, type PacketOf, type Received, type Refuse } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";

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
  /** Aborted, with the first RunError, when a stage, the server or the connection is gone: the run cannot continue. */
  readonly lost: AbortSignal;
  /** For what is known in another way, as the end of a stage's process: its requests fail with this error, later ones too. */
  readonly fail: (stage: number, error: MloraError) => void;
}

export type GatherOptions = {
  /** How long stages have to join. */
  readonly joinMs: number;
  /** Places below this are for stages that ask for them by number. */
  readonly reserved?: number;
  /** Ends the waiting; its reason is thrown. */
  readonly signal?: AbortSignal;
  /** Called for every message that is refused, and for stages that may not join. */
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
 * Waits until `stages` stages of this run have joined and returns the bus to them; one that joins without a place of its own
 * gets the lowest that is free. Disposing sends the stages a farewell; the connection stays. Throws a RunError, `bus.join`,
 * when not all have joined in time, and the error that would abort `lost`.
 */
export async function natsBus(
  connection: SealedConnection,
  run: string,
  stages: number,
  options: GatherOptions,
): Promise<NatsBus> {
  const bus = new Gathering(new Endpoint(connection, run, options.refuse), stages);
  try {
    await bus.gather(options);
    return bus;
  } catch (error) {
    await bus[Symbol.asyncDispose]();
    throw error;
  }
}

class Gathering implements NatsBus {
  readonly #places = new Map<number, Place>();
  readonly #lost = new AbortController();
  readonly #all = Promise.withResolvers<void>();
  #reserved = 0;
  #closed = false;

  constructor(
    private readonly endpoint: Endpoint,
    readonly stages: number,
  ) {
    this.#all.promise.catch(() => undefined); // it may fail before or after `gather` awaits it
  }

  get connection(): SealedConnection {
    return this.endpoint.connection;
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  get infos(): readonly StageInfo[] {
    return [...this.#places.values()].map(({ info }) => info).sort((a, b) => a.stage - b.stage);
  }

  async gather({ joinMs, reserved = 0, signal }: GatherOptions): Promise<void> {
    this.#reserved = reserved;
    const { subjects } = this.endpoint;
    await this.endpoint.start(
      (error) => this.#failAll(error),
      (session) => this.#silent(session),
    );
    for (const subject of [subjects.coordinator, subjects.hello])
      this.endpoint.listen(subject, (packet, on) => this.#receive(packet, on));
    await this.connection.flush();

    using _stop = signal && onAbort(signal, () => this.#all.reject(signal.reason));
    const timer = setTimeout(() => this.#all.reject(this.#notAll(joinMs)), joinMs);
    try {
      await this.#all.promise;
    } finally {
      clearTimeout(timer);
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
      this.endpoint.send(this.endpoint.subjects.stage(info.stage), { kind: "bye", to: session, reason: null });
      for (const { reject } of pending.values()) reject(error);
      pending.clear();
    }
    // A stage that does not get the farewell misses the heartbeats that follow.
    await this.endpoint.close(() => Promise.race([this.connection.flush().catch(() => undefined), sleep(FAREWELL_MS)]));
  }

  #receive(packet: Received, subject: string): void {
    const { from, kind } = packet;
    const place = [...this.#places.values()].find(({ session }) => session === from);
    if (kind === "hello") this.#greet(packet);
    else if (!place || !("to" in packet) || packet.to !== this.endpoint.session)
      this.endpoint.refuse(
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
    if (hello.coordinator !== null && hello.coordinator !== this.endpoint.session) {
      this.endpoint.refuse(`${hello.host}, process ${hello.pid}, obeys another coordinator of the run ${this.endpoint.run}`);
      return;
    }
    if (hello.coordinator !== null && !place.sealed) {
      place.sealed = true;
      if ([...this.#places.values()].filter(({ sealed }) => sealed).length === this.stages) this.#all.resolve();
    }
    const { stages } = this;
    this.endpoint.send(this.endpoint.subjects.welcome(hello.from), {
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
      this.endpoint.send(this.endpoint.subjects.welcome(from), { kind: "refusal", code, message, hint });
      this.endpoint.refuse(`${who} may not join: ${message}`);
      return null;
    };
    if (version !== VERSION)
      return reject(
        "bus.version",
        `the stage is mlora ${version}, the coordinator ${VERSION}`,
        "put the same mlora on both machines",
      );
    const free = range(this.stages).filter((i) => !this.#places.has(i));
    const stage = wanted ?? free.find((i) => i >= this.#reserved);
    if (stage === undefined)
      return reject(
        "bus.full",
        `the run ${this.endpoint.run} has all its ${counted(this.stages, "stage")}`,
        "start no more of them",
      );
    if (stage >= this.stages)
      return reject(
        "bus.place",
        `there is no stage ${stage}: the run ${this.endpoint.run} has ${this.stages}, numbered from 0`,
        "leave the number out",
      );
    const holder = this.#places.get(stage);
    if (holder)
      return reject("bus.place", `stage ${stage} is ${whoIs(holder)} already`, "leave the number out, or start no more stages");
    const deliver = (message: Uint8Array) => this.#answered(place, message);
    const channel = this.endpoint.channelTo(from, this.endpoint.subjects.stage(stage), deliver);
    const info = { stage, host, pid, report };
    const place: Place = { info, session: from, channel, pending: new Map(), sealed: false, requests: 0, failure: null };
    this.#places.set(stage, place);
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
      else this.endpoint.refuse(`an answer of ${whoIs(place)} was refused: ${textOf(error)}`);
    }
  }

  #silent(session: string): void {
    const place = [...this.#places.values()].find((place) => place.session === session);
    if (place?.sealed) this.#failPlace(place, goneError(whoIs(place)));
    else if (place) this.#forget(place); // it was on its way in: another may have its place
  }

  #forget(place: Place): void {
    place.channel[Symbol.dispose]();
    this.#places.delete(place.info.stage);
  }

  #failPlace(place: Place, error: MloraError): void {
    if (place.failure || this.#closed) return;
    place.failure = error;
    place.channel[Symbol.dispose]();
    this.endpoint.forget(place.session);
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
    const missing = range(this.stages).filter((i) => !this.#places.get(i)?.sealed);
    const refused = this.endpoint.refused.slice(0, 5).map((text) => `\n  ${text}`);
    const count = missing.length === 1 ? `stage ${missing[0]} has` : `stages ${missing.join(", ")} have`;
    return new RunError(
      "bus.join",
      `${count} not joined the run ${this.endpoint.run} within ${joinMs / 1000} s${refused.join("")}`,
      `see what they say; on other machines they join with: mlora stage --nats URL --run ${this.endpoint.run}`,
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

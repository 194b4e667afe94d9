// A stage's side of the bus over NATS: joins a run, answers requests one after the other, and notices when the run is gone.

import { hostname } from "node:os";
import * as v from "valibot";
import { now } from "../base/clock.ts";
import type { DeviceReport } from "../base/device-report.ts";
import { invariant, RequestError, RunError, textOf } from "../base/errors.ts";
import { VERSION } from "../base/version.ts";
import { Later, type StageHandlers } from "./bus.ts";
import type { Channel } from "./channel.ts";
import { Endpoint, goneError } from "./endpoint.ts";
import { type Ask, readAsk, writeAnswer, writeFailure } from "./exchange.ts";
import { requestSchema, type StageRequest } from "./messages.ts";
import { issuesOf, type PacketOf, type Received, type Refuse } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";

export type JoinOptions = {
  /** Its number; null takes what is free. */
  readonly stage: number | null;
  readonly report: DeviceReport;
  /** How long to look for the coordinator. */
  readonly joinMs: number;
  /** Called for every message that is refused. */
  readonly refuse?: Refuse;
};

/** A stage's place in a run. Disposing leaves it. */
export interface StageMembership extends AsyncDisposable {
  readonly stage: number;
  readonly stages: number;
  /** For the links to its neighbours: sealed by a key that is of this run's present coordinator alone. */
  readonly links: SealedConnection;
  /**
   * Resolves when the run is over for this stage: null when it is done, a RunError when the coordinator or the server is gone.
   */
  readonly ended: Promise<RunError | null>;
  /**
   * Answers requests from now on, those that have come already first; each once, in their order, one after the other. Call it
   * once.
   */
  readonly serve: (handlers: Partial<StageHandlers>) => void;
  /** Tells the coordinator why this stage ends, once its answers have arrived there; null for no reason. */
  readonly leave: (reason: string | null) => Promise<void>;
}

const HELLO_MS = 200;
/** How long answers that are on their way may take before a stage leaves. */
const SETTLE_MS = 1_000;

/**
 * Joins a run on this connection. Throws what the coordinator has against it, as another version (RequestError, `bus.*`), or a
 * RunError, `bus.join`, when no coordinator answers.
 */
export async function joinRun(connection: SealedConnection, run: string, options: JoinOptions): Promise<StageMembership> {
  const membership = new Joined(new Endpoint(connection, run, options.refuse));
  try {
    await membership.join(options);
    return membership;
  } catch (error) {
    await membership[Symbol.asyncDispose]();
    throw error;
  }
}

/** Its coordinator, and its place there. */
type Tie = {
  readonly coordinator: string;
  readonly who: string;
  readonly stage: number;
  readonly stages: number;
  readonly channel: Channel;
};

class Joined implements StageMembership {
  readonly #ended = Promise.withResolvers<RunError | null>();
  readonly #sealed = Promise.withResolvers<void>();
  readonly #asks: Uint8Array[] = [];
  #tie: Tie | null = null;
  #handlers: Partial<StageHandlers> | null = null;
  #working = false;
  #answered = 0;
  #closed = false;
  #hello: () => void = () => undefined;

  constructor(private readonly endpoint: Endpoint) {
    this.#sealed.promise.catch(() => undefined);
  }

  get stage(): number {
    return this.#bound.stage;
  }

  get stages(): number {
    return this.#bound.stages;
  }

  get links(): SealedConnection {
    return this.endpoint.connection.derived(this.#bound.coordinator);
  }

  get ended(): Promise<RunError | null> {
    return this.#ended.promise;
  }

  get #bound(): Tie {
    invariant(this.#tie, "a stage that has joined no run");
    return this.#tie;
  }

  async join({ stage, report, joinMs }: JoinOptions): Promise<void> {
    const { connection, run, subjects, session } = this.endpoint;
    await this.endpoint.start(
      (error) => this.#end(error),
      (from) => this.#silent(from),
    );
    this.#listen(subjects.welcome(session));
    this.#hello = () =>
      this.endpoint.send(subjects.hello, {
        kind: "hello",
        version: VERSION,
        host: hostname(),
        pid: process.pid,
        stage,
        coordinator: this.#tie?.coordinator ?? null,
        report,
      });
    const limit = now() + joinMs;
    const timer = setInterval(() => {
      if (now() < limit) return this.#hello();
      const message = `no coordinator of the run ${run} answered at ${connection.server} within ${joinMs / 1000} s`;
      this.#sealed.reject(
        new RunError(
          "bus.join",
          message,
          "see that mlora run still waits for its stages, that --run is its id, and that the key is this run's",
        ),
      );
    }, HELLO_MS);
    this.#hello();
    try {
      await Promise.race([
        this.#sealed.promise,
        this.#ended.promise.then((error) => Promise.reject(error ?? new RunError("bus.closed", "the run has ended"))),
      ]);
    } finally {
      clearInterval(timer);
    }
  }

  serve(handlers: Partial<StageHandlers>): void {
    invariant(!this.#handlers, "a stage that serves twice");
    this.#handlers = handlers;
    void this.#work();
  }

  async leave(reason: string | null): Promise<void> {
    if (this.#closed) return;
    if (this.#tie) {
      const { channel, coordinator } = this.#tie;
      await Promise.race([channel.settled(), Bun.sleep(SETTLE_MS)]);
      this.endpoint.send(this.endpoint.subjects.coordinator, { kind: "bye", to: coordinator, reason });
      await Promise.race([this.endpoint.connection.flush().catch(() => undefined), Bun.sleep(SETTLE_MS)]);
    }
    this.#end(null);
    this.#closed = true;
    this.#tie?.channel[Symbol.dispose]();
    await this.endpoint.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.leave(null);
  }

  #listen(subject: string): void {
    this.endpoint.listen(subject, (packet, on) => this.#receive(packet, on));
  }

  #receive(packet: Received, subject: string): void {
    const { kind, from } = packet;
    const reject = (why: string) => this.endpoint.refuse(`a message (${kind}) on ${subject} from ${from} was refused: ${why}`);
    if (kind === "refusal" && this.#tie) reject("this stage has its place");
    else if (kind === "refusal") this.#sealed.reject(new RequestError(packet.code, packet.message, packet.hint));
    else if (kind === "welcome" && this.#tie && this.#tie.coordinator !== from) reject("this stage has its coordinator");
    else if (kind === "welcome") this.#welcomed(packet);
    else if (from !== this.#tie?.coordinator) reject("it is not from the coordinator");
    else if (!("to" in packet) || packet.to !== this.endpoint.session) reject("it is not for this stage");
    else if (kind === "bye")
      this.#end(packet.reason === null ? null : new RunError("bus.left", `${this.#tie.who} left: ${packet.reason}`));
    else this.#tie.channel.take(packet);
  }

  #welcomed({ from, host, pid, stage, stages, sealed }: PacketOf<"welcome"> & Pick<Received, "from">): void {
    if (!this.#tie) {
      const { subjects } = this.endpoint;
      const channel = this.endpoint.channelTo(from, subjects.coordinator, (message) => {
        this.#asks.push(message);
        void this.#work();
      });
      this.#tie = { coordinator: from, who: `the coordinator (${host}, process ${pid})`, stage, stages, channel };
      this.#listen(subjects.stage(stage));
    }
    if (sealed) this.#sealed.resolve();
    else this.#hello();
  }

  /** One after the other, until nothing is left. */
  async #work(): Promise<void> {
    if (this.#working || !this.#handlers) return;
    this.#working = true;
    for (let message = this.#asks.shift(); message && !this.#closed; message = this.#asks.shift()) await this.#answer(message);
    this.#working = false;
  }

  async #answer(message: Uint8Array): Promise<void> {
    const { channel } = this.#bound;
    let ask: Ask;
    try {
      ask = readAsk(message);
      if (ask.id !== this.#answered) throw new Error(`it is request ${ask.id}, and ${this.#answered} is due`);
    } catch (error) {
      return this.endpoint.refuse(`a request was refused: ${textOf(error)}`);
    }
    this.#answered++;
    const reply = async (value: Promise<unknown>): Promise<void> => {
      try {
        const found = await value;
        if (found instanceof Later) void reply(found.reply);
        else if (!this.#closed) channel.send(writeAnswer(ask.id, found));
      } catch (error) {
        if (!this.#closed) channel.send(writeFailure(ask.id, error));
      }
    };
    await reply(this.#handle(ask.request));
  }

  /** The handler's reply; throws what it throws, and where the request is malformed. */
  async #handle(request: Ask["request"]): Promise<unknown> {
    const schema = requestSchema(request.type);
    if (!schema) throw new RunError("bus.malformed", `there is no request '${request.type.slice(0, 40)}'`);
    const checked = v.safeParse(schema, request);
    if (!checked.success)
      throw new RunError("bus.malformed", `the request '${request.type}' was refused: ${issuesOf(checked.issues)}`);
    const { type } = checked.output;
    const handle = this.#handlers![type] as ((request: StageRequest) => Promise<unknown>) | undefined;
    if (!handle) throw new RunError("bus.malformed", `the request '${type}' came before the stage was opened`);
    return await handle(checked.output);
  }

  #silent(session: string): void {
    if (session === this.#tie?.coordinator) this.#end(goneError(this.#tie.who));
  }

  #end(error: RunError | null): void {
    this.#ended.resolve(error);
  }
}

// Requests of another process to a run: its status, and changes of what trains. The coordinator answers.
//
// A request is one message and so is its answer: without an answer, the run does not listen, or the coordinator is computing (a
// single stage's passes are computed in its process). A request whose connection is lost may be made again under its number, at
// the run's next address: it is done once, and answered each time.

import * as v from "valibot";
import { onAbort } from "../base/abort.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { count } from "../base/schema.ts";
import { randomText } from "../base/secret.ts";
import { VERSION } from "../base/version.ts";
import { errorFrom, readAnswer, readAsk, writeAnswer, writeAsk, writeFailure } from "./exchange.ts";
import { issuesOf, type Refuse, readPacket, writePacket } from "./packets.ts";
import type { SealedConnection } from "./seal.ts";
import { subjectsOf } from "./subjects.ts";

const name = v.pipe(v.string(), v.maxLength(64));
/** Bytes of a recipe's text at most: it travels in one message. */
const MOST_TEXT = 512 * 1024;

const request = v.variant("type", [
  v.strictObject({ type: v.literal("status") }),
  /** Of one adapter, or (null) of the whole run. */
  v.strictObject({ type: v.picklist(["stop", "pause", "resume"]), adapter: v.nullable(name) }),
  /** The adapters of a recipe, `text`, whose paths are absolute, join the run; `path` names it in messages. */
  v.strictObject({ type: v.literal("add"), text: v.pipe(v.string(), v.maxLength(MOST_TEXT)), path: v.string() }),
  /** The outcome of an addition whose data was still being read at the request before. */
  v.strictObject({ type: v.literal("outcome"), ticket: v.pipe(v.string(), v.maxLength(64)) }),
  /** A copy of an adapter continues from here under another name, concurrently with it; `changes` are keys of a recipe. */
  v.strictObject({
    type: v.literal("fork"),
    adapter: name,
    name,
    changes: v.record(v.string(), v.unknown()),
  }),
]);
export type ControlRequest = v.InferOutput<typeof request>;

const amount = v.nullable(v.number());

/** An adapter as `mlora ps` shows it; `seconds` are what it still takes, at its present rate. */
const adapterStatus = v.strictObject({
  name,
  state: v.string(),
  step: count,
  steps: count,
  loss: amount,
  tokensPerSecond: amount,
  secondsLeft: amount,
  priority: v.number(),
});
export type AdapterStatus = v.InferOutput<typeof adapterStatus>;

const status = v.strictObject({
  state: v.picklist(["starting", "training", "waiting", "stopping"]),
  stages: count,
  slots: count,
  /** What the run takes on its devices, as planned. */
  memoryBytes: count,
  tokensPerSecond: v.number(),
  seconds: v.number(),
  secondsLeft: amount,
  adapters: v.array(adapterStatus),
});
export type RunStatus = v.InferOutput<typeof status>;

/** The data of adapters that are to come is being read, so far: their outcome is to be asked for by the ticket. */
const underway = v.strictObject({ ticket: v.string(), reading: v.string() });
export type Underway = v.InferOutput<typeof underway>;

/** A status is answered with one; all else with a sentence that says what is done, an addition also with how far it is. */
type ReplyOf<R extends ControlRequest> = R extends { readonly type: "status" }
  ? RunStatus
  : R extends { readonly type: "add" | "outcome" }
    ? string | Underway
    : string;
const REPLIES = { status, sentence: v.string(), addition: v.union([v.string(), underway]) };

/** What the latest requests of a run came to, by their numbers: for all its servers, one after the other. */
export class Answers {
  readonly #known = new Map<string, Promise<string | RunStatus | Underway>>();

  /** Does it, or gives what it came to before. Where the run was not ready it may be asked again. */
  once(number: string, handle: () => Promise<string | RunStatus | Underway>): Promise<string | RunStatus | Underway> {
    const known = this.#known.get(number);
    if (known) return known;
    const answer = handle();
    this.#known.set(number, answer);
    answer.catch((error) => {
      if (isStarting(error)) this.#known.delete(number);
    });
    const [oldest] = this.#known.keys();
    if (this.#known.size > MOST_ANSWERS) this.#known.delete(oldest!);
    return answer;
  }
}
const MOST_ANSWERS = 1000;

/** The run takes no requests yet, and has done nothing. */
export const starting = (): RequestError =>
  new RequestError("control.starting", "the run's stages are being opened", "ask again when they are");
export const isStarting = (error: unknown): error is RequestError =>
  error instanceof RequestError && error.code === "control.starting";

/** A name for a request, the same however often it is asked. */
export const newRequestNumber = (): string => randomText(20);

/** Answers all that is asked of the run, until it is disposed. What `handle` throws goes to whoever asked. */
export function serveControl(
  connection: SealedConnection,
  run: string,
  handle: (request: ControlRequest) => Promise<RunStatus | string | Underway>,
  refuse: Refuse,
  answers = new Answers(),
): Disposable {
  const session = randomText(20);
  const subjects = subjectsOf(run);
  return connection.subscribe(subjects.control, (bytes, subject) => {
    const packet = readPacket(bytes, subject, run, refuse);
    if (packet?.kind !== "ask") {
      if (packet) refuse(`a message (${packet.kind}) on ${subject} from ${packet.from} was refused: it asks nothing`);
      return;
    }
    const { from, version, number } = packet;
    const tell = (answer: Uint8Array) =>
      connection.publish(subjects.answer(from), writePacket(run, session, { kind: "answer", bytes: answer }));
    const content = packet.bytes.slice(); // a message is only lent
    const answer = async (): Promise<void> => {
      let id = 0;
      try {
        const ask = readAsk(content);
        id = ask.id;
        if (version !== VERSION) throw otherVersion(version);
        const parsed = v.safeParse(request, ask.request);
        if (!parsed.success) throw new RequestError("control.request", issuesOf(parsed.issues));
        const asked = parsed.output;
        const done = asked.type === "status" ? handle(asked) : answers.once(number, () => handle(asked));
        tell(writeAnswer(id, await done));
      } catch (error) {
        tell(writeFailure(id, error));
      }
    };
    void answer();
  });
}

const otherVersion = (version: string): RequestError =>
  new RequestError("control.version", `the run is of mlora ${VERSION}, this is ${version}`, "use the same mlora for both");

/** A request that is not answered is sent again this often. */
const AGAIN_MS = 1_000;

/**
 * Makes a request of a run and waits for its answer. Throws the run's own error, and RunErrors: `control.silent`, and
 * `control.lost` where the connection is lost first: then the run may have the request, which may be repeated under the same
 * `number`.
 */
export async function askControl<R extends ControlRequest>(
  connection: SealedConnection,
  run: string,
  asked: R,
  timeoutMs: number,
  number = newRequestNumber(),
): Promise<ReplyOf<R>> {
  const session = randomText(20);
  const subjects = subjectsOf(run);
  const { promise, resolve, reject } = Promise.withResolvers<ReplyOf<R>>();
  const malformed = (why: string) => reject(new RunError("control.malformed", `the run ${run} answered wrongly: ${why}`));
  using _answers = connection.subscribe(subjects.answer(session), (bytes, subject) => {
    const packet = readPacket(bytes, subject, run, malformed);
    if (packet?.kind !== "answer") return;
    try {
      const answer = readAnswer(packet.bytes);
      if ("failure" in answer) return reject(errorFrom(answer.failure, null));
      const kind = asked.type === "status" ? "status" : /^(add|outcome)$/.test(asked.type) ? "addition" : "sentence";
      const parsed = v.safeParse(REPLIES[kind] as v.GenericSchema<unknown>, answer.value);
      if (parsed.success) resolve(parsed.output as ReplyOf<R>);
      else malformed(issuesOf(parsed.issues));
    } catch (error) {
      malformed(textOf(error));
    }
  });
  const silent = `the run ${run} has not answered within ${timeoutMs / 1000} s`;
  const lost = () => {
    const message = `the connection to the run ${run} was lost before it answered`;
    reject(new RunError("control.lost", message, "see with mlora ps whether it was heard, or ask again"));
  };
  using _watching = connection.watch((state) => state === "lost" && lost());
  using _over = onAbort(connection.over, lost);
  const timer = setTimeout(
    () => reject(new RunError("control.silent", silent, "it computes a long pass, hangs, or has just ended; ask again")),
    timeoutMs,
  );
  const ask = () =>
    connection.publish(
      subjects.control,
      writePacket(run, session, { kind: "ask", version: VERSION, number, bytes: writeAsk(0, asked) }),
    );
  // The server drops a message that has no subscriber yet; a request is done once, by its number, however often it arrives.
  const again = setInterval(ask, AGAIN_MS);
  try {
    ask();
    void connection.flush().catch(lost);
    return await promise;
  } finally {
    clearInterval(again);
    clearTimeout(timer);
  }
}

// What can be asked of a run while it goes on, from another process: how it stands, and to change who trains. The coordinator answers.
//
// A request is one message and so is its answer: an answer that does not come means that nobody listens, or that the coordinator
// computes just then (a single stage's passes are computed in its process).

import * as v from "valibot";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";
import { VERSION } from "../base/version.ts";
import { errorFrom, readAnswer, readAsk, writeAnswer, writeAsk, writeFailure } from "./exchange.ts";
import type { Connection } from "./nats.ts";
import { issuesOf, type Refuse, readPacket, writePacket } from "./packets.ts";
import { subjectsOf } from "./subjects.ts";

const name = v.pipe(v.string(), v.maxLength(64));
const who = v.nullable(name);
/** Bytes of a recipe's text at most: it travels in one message. */
const MOST_TEXT = 512 * 1024;
/** A run's server that is not there again within this time is gone, and the run with it or with other stages. */
const LOST_MS = 2_000;

const request = v.variant("type", [
  v.strictObject({ type: v.literal("status") }),
  /** Of one adapter, or (null) of the whole run. */
  v.strictObject({ type: v.literal("stop"), adapter: who }),
  v.strictObject({ type: v.literal("pause"), adapter: who }),
  v.strictObject({ type: v.literal("resume"), adapter: who }),
  /** The adapters of a recipe, `text`, whose paths are absolute, join the run; `path` names it in messages. */
  v.strictObject({ type: v.literal("add"), text: v.pipe(v.string(), v.maxLength(MOST_TEXT)), path: v.string() }),
  /** What came of an addition whose data was still read when it was last asked for. */
  v.strictObject({ type: v.literal("outcome"), ticket: v.pipe(v.string(), v.maxLength(64)) }),
  /** A copy of an adapter goes on beside it under another name; `changes` are a recipe's keys. */
  v.strictObject({
    type: v.literal("fork"),
    adapter: name,
    name,
    changes: v.record(v.string(), v.unknown()),
  }),
]);
export type ControlRequest = v.InferOutput<typeof request>;

const count = v.pipe(v.number(), v.safeInteger(), v.minValue(0));
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

/** Answers all that is asked of the run, until it is disposed. What `handle` throws goes to whoever asked. */
export function serveControl(
  connection: Connection,
  run: string,
  handle: (request: ControlRequest) => Promise<RunStatus | string | Underway>,
  refuse: Refuse,
): Disposable {
  const session = randomText(20);
  const subjects = subjectsOf(run);
  return connection.subscribe(subjects.control, (bytes, subject) => {
    const packet = readPacket(bytes, subject, run, refuse);
    if (packet?.kind !== "ask") {
      if (packet) refuse(`a message (${packet.kind}) on ${subject} from ${packet.from} was refused: it asks nothing`);
      return;
    }
    const { from, version } = packet;
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
        tell(writeAnswer(id, await handle(parsed.output)));
      } catch (error) {
        tell(writeFailure(id, error));
      }
    };
    void answer();
  });
}

const otherVersion = (version: string): RequestError =>
  new RequestError("control.version", `the run is of mlora ${VERSION}, this is ${version}`, "use the same mlora for both");

/** Asks a run something and waits for its answer. Throws what the run says is wrong, and RunErrors, `control.silent` and `control.lost`. */
export async function askControl<R extends ControlRequest>(
  connection: Connection,
  run: string,
  asked: R,
  timeoutMs: number,
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
  const timer = setTimeout(
    () => reject(new RunError("control.silent", silent, "it computes a long pass, hangs, or has just ended; ask again")),
    timeoutMs,
  );
  const lost = `the run ${run} has not answered: the connection to its server is lost`;
  const hint = "it opens its stages again, or has ended; see mlora ps";
  let gone: ReturnType<typeof setTimeout> | undefined;
  using _watch = connection.watch((state) => {
    clearTimeout(gone);
    if (state === "lost") gone = setTimeout(() => reject(new RunError("control.lost", lost, hint)), LOST_MS);
  });
  try {
    connection.publish(
      subjects.control,
      writePacket(run, session, { kind: "ask", version: VERSION, bytes: writeAsk(0, asked) }),
    );
    await connection.flush();
    return await promise;
  } finally {
    clearTimeout(timer);
    clearTimeout(gone);
  }
}

// The thread that beats for its process and listens to the beats of others, with a connection of its own: the main thread may
// be in a kernel for many seconds, and a process that is stopped or dead stops beating all the same. Started by heartbeat.ts.
//
// It receives its own beats, too: when those do not come back the server is silent, not a peer.

import { parentPort } from "node:worker_threads";
import { now } from "../base/clock.ts";
import { MloraError, textOf } from "../base/errors.ts";
import type { Address } from "./address.ts";
import { BEAT_MS, readPacket, SILENCE_MS, writePacket } from "./packets.ts";
import { connectSealed, type RunKey } from "./seal.ts";
import { subjectsOf } from "./subjects.ts";

/** Interval between checks for silent sessions. */
const LOOK_MS = 200;
/** The server answers late: it may be on its way back, and then the others are, too. */
const LATE_MS = 1.5 * BEAT_MS;

export type ToHeartbeat =
  | { readonly type: "start"; readonly address: Address; readonly key: RunKey; readonly run: string; readonly session: string }
  | { readonly type: "watch" | "forget"; readonly session: string };
export type FromHeartbeat =
  | { readonly type: "beating" }
  | { readonly type: "failed"; readonly code: string; readonly message: string; readonly hint: string | undefined }
  /** Null is the server. */
  | { readonly type: "silent"; readonly session: string | null };

/** By session, when it was last heard of. */
const heard = new Map<string, number>();
const post = (message: FromHeartbeat): void => parentPort?.postMessage(message);

parentPort?.on("message", (message: ToHeartbeat) => {
  if (message.type === "watch") heard.set(message.session, now());
  if (message.type === "forget") heard.delete(message.session);
  if (message.type === "start")
    void start(message).catch((error: unknown) => {
      const { code, hint } = error instanceof MloraError ? error : { code: "bus.heartbeat", hint: undefined };
      post({ type: "failed", code, message: textOf(error), hint });
    });
});

async function start({ address, key, run, session }: Extract<ToHeartbeat, { type: "start" }>): Promise<void> {
  const connection = await connectSealed(address, `mlora ${run} heartbeat`, key);
  const subjects = subjectsOf(run);
  const beat = () => connection.publish(subjects.beat(session), writePacket(run, session, { kind: "beat" }));
  let echo = now();
  connection.subscribe(subjects.beat("*"), (bytes, subject) => {
    const from = readPacket(bytes, subject, run, () => {})?.from; // malformed packets are ignored
    if (from === session) echo = now();
    else if (from !== undefined && heard.has(from)) heard.set(from, now());
  });
  connection.watch((state) => {
    if (state === "back") beat();
  });
  await connection.flush();
  beat();
  setInterval(beat, BEAT_MS);

  let looked = now();
  let late = false;
  let lost = false;
  setInterval(() => {
    const time = now();
    const away = time - looked > 5 * LOOK_MS; // we were stopped, not they
    looked = time;
    if (away) echo = time;
    const wasLate = late;
    late = time - echo > LATE_MS;
    if (away || (wasLate && !late)) for (const who of heard.keys()) heard.set(who, time);
    if (time - echo > SILENCE_MS && !lost) {
      lost = true;
      post({ type: "silent", session: null });
    }
    if (late) return;
    for (const [who, since] of heard)
      if (time - since > SILENCE_MS) {
        heard.delete(who);
        post({ type: "silent", session: who });
      }
  }, LOOK_MS);
  post({ type: "beating" });
}

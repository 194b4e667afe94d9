// What crosses the wire: small packets with an envelope that says whose they are. One that is not what it should be is refused
// and named, and nothing else happens. What the packets of a channel carry, requests and replies, is messages.ts's.

import * as v from "valibot";
import { deviceReport } from "../base/device-report.ts";
import { textOf } from "../base/errors.ts";
import { count, type Output } from "../base/schema.ts";
import { decode, encode } from "./codec.ts";

/** Changed with anything that crosses the wire. */
export const PROTOCOL = 2;
export const BEAT_MS = 1_000;
/** A peer that is silent for this long is gone: noticed within 5 s, with a beat before the death and a late look after it. */
export const SILENCE_MS = 4_000;

const text = v.pipe(v.string(), v.maxLength(4096));
const session = v.pipe(v.string(), v.regex(/^[a-z0-9]{8,64}$/));
const content = v.custom<Uint8Array>((value) => value instanceof Uint8Array, "Expected bytes");

const packet = v.variant("kind", [
  /** A stage announces itself, until it is welcomed; `coordinator` is whose welcome it has. */
  v.object({
    kind: v.literal("hello"),
    version: text,
    host: text,
    pid: count,
    stage: v.nullable(count),
    coordinator: v.nullable(session),
    report: deviceReport,
  }),
  /** Its place; `sealed` once the coordinator knows that it knows. */
  v.object({ kind: v.literal("welcome"), host: text, pid: count, stage: count, stages: count, sealed: v.boolean() }),
  /** It may not join. */
  v.object({ kind: v.literal("refusal"), code: text, message: text, hint: v.optional(text) }),
  /** A piece of a message; `size` of the whole is with the first piece, and null with those that follow. */
  v.object({
    kind: v.literal("chunk"),
    to: session,
    number: count,
    size: v.nullable(count),
    bytes: content,
  }),
  /** Asks what has arrived. */
  v.object({ kind: v.literal("probe"), to: session, probe: count }),
  /** All chunks below `next` have arrived; `probe` is the latest that was asked. */
  v.object({ kind: v.literal("ack"), to: session, next: count, probe: count }),
  /** The sender is leaving: done, or for a reason. */
  v.object({ kind: v.literal("bye"), to: session, reason: v.nullable(text) }),
  v.object({ kind: v.literal("beat") }),
  /** Asks something of the run (control.ts), and is answered; the same `number` again is the same request. */
  v.object({ kind: v.literal("ask"), version: text, number: session, bytes: content }),
  v.object({ kind: v.literal("answer"), bytes: content }),
]);
const envelope = v.looseObject({ v: v.number(), run: text, from: session });

type Packet = Output<typeof packet>;
export type PacketOf<K extends Packet["kind"]> = Extract<Packet, { readonly kind: K }>;
/** A packet as it arrived. `from` is the session of the sender. */
export type Received = Packet & { readonly from: string };

/** Called for each packet that is refused: its sender, and why. */
export type Refuse = (text: string) => void;

export const writePacket = (run: string, from: string, content: Packet): Uint8Array =>
  encode({ v: PROTOCOL, run, from, ...content });

/** The packet in a message that came on `subject`; null where it was refused. */
export function readPacket(bytes: Uint8Array, subject: string, run: string, refuse: Refuse): Received | null {
  const reject = (why: string, who = "unknown"): null => {
    refuse(`a message on ${subject} from ${who} was refused: ${why}`);
    return null;
  };
  let decoded: unknown;
  try {
    decoded = decode(bytes);
  } catch (error) {
    return reject(`${bytes.length} bytes that are no message (${textOf(error)})`);
  }
  const outer = v.safeParse(envelope, decoded);
  if (!outer.success) return reject(issuesOf(outer.issues));
  const { v: protocol, run: theirs, from } = outer.output;
  if (protocol !== PROTOCOL)
    return reject(`it speaks version ${protocol} of the protocol, this mlora version ${PROTOCOL}`, from);
  if (theirs !== run) return reject(`it is of the run ${JSON.stringify(theirs)}, this is ${run}`, from);
  const inner = v.safeParse(packet, decoded);
  if (!inner.success) return reject(issuesOf(inner.issues), from);
  return { ...inner.output, from };
}

/** "bytes: Expected Uint8Array but received string": the first few faults. */
export const issuesOf = (issues: readonly v.BaseIssue<unknown>[]): string =>
  issues
    .slice(0, 3)
    .map((issue) => `${v.getDotPath(issue) ?? "it"}: ${issue.message.slice(0, 200)}`)
    .join("; ");

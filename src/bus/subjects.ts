// The subjects of a run, made here alone: "mlora.<run>.<...>". A dot separates, * and > match anything, and a space ends a
// subject, so that no name is put into one unchanged.

import { RequestError } from "../base/errors.ts";
import { randomText } from "../base/secret.ts";

const RUN = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;

export type Subjects = {
  /** Stages announce themselves. */
  readonly hello: string;
  /** A stage, by its session, gets its place. */
  readonly welcome: (session: string) => string;
  readonly coordinator: string;
  readonly stage: (stage: number) => string;
  /** Heartbeats of a session; "*" for those of all. */
  readonly beat: (session: string) => string;
  /** Activations and gradients from a stage to another; `channelId` is the link's own. */
  readonly link: (from: number, to: number, channelId: string) => string;
  /** Requests from command lines. */
  readonly control: string;
  /** Answers to the session that made the request. */
  readonly answer: (session: string) => string;
};

/** Throws a RequestError, `run.id`, where the id cannot be a part of a subject. */
export function subjectsOf(run: string): Subjects {
  const base = `mlora.${runId(run)}`;
  return {
    hello: `${base}.hello`,
    welcome: (session) => `${base}.welcome.${subjectToken(session)}`,
    coordinator: `${base}.coordinator`,
    stage: (stage) => `${base}.stage.${stage}`,
    beat: (session) => `${base}.beat.${session === "*" ? "*" : subjectToken(session)}`,
    link: (from, to, channelId) => `${base}.link.${from}.${to}.${subjectToken(channelId)}`,
    control: `${base}.control`,
    answer: (session) => `${base}.answer.${subjectToken(session)}`,
  };
}

/** A name for a run that no other has. */
export const newRunId = (): string => randomText(12);

/** The id, if it is one. */
export function runId(run: string): string {
  if (RUN.test(run)) return run;
  const shown = JSON.stringify(run.slice(0, 80));
  throw new RequestError(
    "run.id",
    `${shown} cannot be the id of a run`,
    "ids are 1 to 64 letters, digits, - and _, as mlora run prints them",
  );
}

/** Any text as one token of a subject; different texts give different tokens. Letters, digits and - stay as they are. */
const subjectToken = (text: string): string =>
  text === "" ? "_" : Array.from(new TextEncoder().encode(text), tokenOf).join("");

const tokenOf = (byte: number): string => {
  const character = String.fromCharCode(byte);
  return /[A-Za-z0-9-]/.test(character) ? character : `_${byte.toString(16).padStart(2, "0")}`;
};

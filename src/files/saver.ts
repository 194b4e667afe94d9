// The thread that writes checkpoints, one after the other, while training continues. Started by session/checkpoints.ts.

import { parentPort } from "node:worker_threads";
import { MloraError, textOf } from "../base/errors.ts";
import { type Progress, type Snapshot, writeCheckpoint } from "./checkpoint.ts";

export type ToSaver = {
  readonly id: number;
  readonly folder: string;
  readonly progress: Progress;
  readonly snapshot: Snapshot;
  readonly keep: number;
};
export type FromSaver = {
  readonly id: number;
  /** A text to report while the checkpoint is still being written. */
  readonly notice?: string;
  readonly failure: { readonly code: string; readonly message: string; readonly hint: string | undefined } | null;
};

parentPort?.on("message", ({ id, folder, progress, snapshot, keep }: ToSaver) => {
  const answer = (failure: FromSaver["failure"]) => parentPort?.postMessage({ id, failure } satisfies FromSaver);
  try {
    const notice = (text: string) => parentPort?.postMessage({ id, notice: text, failure: null } satisfies FromSaver);
    writeCheckpoint(folder, progress, snapshot, keep, notice);
    answer(null);
  } catch (error) {
    const { code, hint } = error instanceof MloraError ? error : { code: "checkpoint.write", hint: undefined };
    answer({ code, message: textOf(error), hint });
  }
});

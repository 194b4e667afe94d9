// A thread that writes the files of adapters, one after the other, while training continues: checkpoints and exports. Started
// by session/state/file-threads.ts.

import { parentPort } from "node:worker_threads";
import { MloraError, textOf } from "../base/errors.ts";
import { type Progress, type Snapshot, writeCheckpoint } from "./checkpoint.ts";
import { exportPeft, type PeftExport } from "./peftexport.ts";

/** Arguments of `writeCheckpoint` and of `exportPeft`. */
export type SaverJob = { readonly folder: string } & (
  | { readonly kind: "checkpoint"; readonly progress: Progress; readonly snapshot: Snapshot; readonly keep: number }
  | { readonly kind: "export"; readonly adapter: PeftExport }
);
export type FromSaver = {
  /** A text to report while the job is under way. */
  readonly notice?: string;
  readonly failure: { readonly code: string; readonly message: string; readonly hint: string | undefined } | null;
};

parentPort?.on("message", (job: SaverJob) => {
  const answer = (failure: FromSaver["failure"]) => parentPort?.postMessage({ failure } satisfies FromSaver);
  try {
    const notice = (text: string) => parentPort?.postMessage({ notice: text, failure: null } satisfies FromSaver);
    if (job.kind === "checkpoint") writeCheckpoint(job.folder, job.progress, job.snapshot, job.keep, notice);
    else exportPeft(job.folder, job.adapter);
    answer(null);
  } catch (error) {
    const { code, hint } = error instanceof MloraError ? error : { code: `${job.kind}.write`, hint: undefined };
    answer({ code, message: textOf(error), hint });
  }
});

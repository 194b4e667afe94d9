// Errors of a thread that reads rows, as messages to another.

import { MloraError, RequestError, RunError } from "../base/errors.ts";

export type ThreadFailure =
  | {
      readonly type: "failed";
      readonly wrong: boolean;
      readonly code: string;
      readonly message: string;
      readonly hint?: string;
    }
  | { readonly type: "bug"; readonly message: string };

export function failureOf(error: unknown): ThreadFailure {
  if (!(error instanceof MloraError)) return { type: "bug", message: `${(error as Error)?.stack ?? error}` };
  const { code, message, hint } = error;
  return { type: "failed", wrong: !(error instanceof RunError), code, message, ...(hint === undefined ? {} : { hint }) };
}

export function errorOf(failure: ThreadFailure): Error {
  if (failure.type === "bug") return new Error(`the reader: ${failure.message}`);
  const { wrong, code, message, hint } = failure;
  return wrong ? new RequestError(code, message, hint) : new RunError(code, message, hint);
}

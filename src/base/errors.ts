// The one family of errors. `code` is stable, for tests and scripts; `message` says what failed, with the place and the
// numbers; `hint` says the way out. Assertions (`invariant`) are for our bugs and are worded for the developer.

export class MloraError extends Error {
  /** The process exit code that this error leads to: 1 failed, 2 bad request. */
  readonly exit: 1 | 2 = 1;
  constructor(
    readonly code: string,
    message: string,
    readonly hint?: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** What was asked cannot be done as asked: a recipe, a file, a flag. Nothing has been started. Exit code 2. */
export class RequestError extends MloraError {
  override readonly exit = 2;
}

/** The work failed while it ran: a device, a disk, a process. Exit code 1. */
export class RunError extends MloraError {}

/** Ends in exit code 70 when it reaches the top: a broken invariant is our bug, never the user's. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`invariant: ${message}`);
}

/** The text of anything thrown, for a message that wraps it. */
export const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

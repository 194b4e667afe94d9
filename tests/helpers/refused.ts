// The error of what must fail.

import { RequestError } from "../../src/base/errors.ts";

/** The error of a class that `work` throws; fails where it throws another error or none. */
export function thrown<E extends Error>(kind: new (...args: never[]) => E, work: () => unknown): E {
  try {
    work();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error("was accepted");
}

/** The RequestError that says why `work` is refused. */
export const refused = (work: () => unknown): RequestError => thrown(RequestError, work);

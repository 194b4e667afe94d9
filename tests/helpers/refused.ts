// What a request that must be refused says.

import { RequestError } from "../../src/base/errors.ts";

/** The RequestError that `work` throws; fails where it throws another error or none. */
export function refused(work: () => unknown): RequestError {
  try {
    work();
  } catch (error) {
    if (error instanceof RequestError) return error;
    throw error;
  }
  throw new Error("was accepted");
}

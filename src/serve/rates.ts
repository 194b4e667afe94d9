// Tokens a minute of a key's answers: a bucket that fills all the time, and that an answer takes its tokens from.

import { now } from "../base/clock.ts";
import { count, counted } from "../base/units.ts";
import { ApiError } from "./errors.ts";

const MINUTE_MS = 60_000;

export class Rates {
  /** Of each tenant, what is left, and when that was. */
  readonly #buckets = new Map<string, { left: number; at: number }>();

  /** `perMinute`: tokens; null for no limit. */
  constructor(
    private readonly perMinute: number | null,
    private readonly clock: () => number = now,
  ) {}

  /**
   * Takes the tokens that an answer may need; what it does not need is given back by the returned function. Throws an ApiError
   * 429 that says when there will be enough, and 400 for more than a minute has.
   */
  take(tenant: string, tokens: number): (unused: number) => void {
    const most = this.perMinute;
    if (most === null) return () => undefined;
    if (tokens > most)
      throw new ApiError(400, `The request needs up to ${counted(tokens, "token")}; this key has ${count(most)} a minute.`, {
        param: "max_tokens",
        code: "rate_limit_exceeded",
      });
    const bucket = this.#filled(tenant, most);
    if (bucket.left < tokens) {
      const seconds = Math.ceil(((tokens - bucket.left) * MINUTE_MS) / most / 1000);
      throw new ApiError(
        429,
        `Rate limit reached: this key has ${counted(most, "token")} a minute. Please try again in ${seconds} s.`,
        {
          code: "rate_limit_exceeded",
          headers: { "retry-after": `${seconds}` },
        },
      );
    }
    bucket.left -= tokens;
    return (unused) => {
      const of = this.#filled(tenant, most);
      of.left = Math.min(most, of.left + unused);
    };
  }

  #filled(tenant: string, most: number): { left: number; at: number } {
    const time = this.clock();
    const bucket = this.#buckets.get(tenant) ?? { left: most, at: time };
    bucket.left = Math.min(most, bucket.left + ((time - bucket.at) * most) / MINUTE_MS);
    bucket.at = time;
    this.#buckets.set(tenant, bucket);
    return bucket;
  }
}

// Sessions of clients: each tells now and then that it is there. One that is silent for long is over, and so are its models.

import { now } from "../../base/clock.ts";
import { randomId } from "../../base/secret.ts";
import { ApiError } from "../errors.ts";
import type { Checkpoints } from "./checkpoints.ts";
import type { SessionAsked, SessionRow, TinkerStore } from "./store.ts";
import type { Training } from "./training.ts";

/** How often it is looked for what is over, and how long results are kept that were not asked for, in ms and s. */
const [SWEEP_MS, KEEP_SECONDS] = [15_000, 1800];

export class Sessions {
  /** When each was last heard. */
  readonly #heard = new Map<string, number>();
  readonly #ending = new Map<string, Promise<void>>();
  #timer: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly store: TinkerStore,
    private readonly training: Training,
    private readonly checkpoints: Checkpoints,
    /** Of silence, after which a session is over. */
    private readonly seconds: number,
  ) {}

  /** Those that an earlier server left have their time anew; what a kill has left of those that were over goes. */
  begin(): void {
    // What fails here has lost the stages, and the server ends by that.
    for (const id of this.store.halfEnded()) this.finish(id).catch(() => undefined);
    for (const { id } of this.store.sessions(null, true)) this.#heard.set(id, now());
    this.#timer = setInterval(() => this.#sweep(), Math.min(SWEEP_MS, 250 * this.seconds));
  }

  create(tenant: string, asked: SessionAsked): string {
    const id = randomId();
    this.store.addSession(tenant, id, asked);
    this.#heard.set(id, now());
    return id;
  }

  /** Throws an ApiError 410 where the session is over. */
  heard(tenant: string, id: string): SessionRow {
    const row = this.store.session(tenant, id);
    if (row.ended_at !== null) throw new ApiError(410, `The session '${id}' is over.`);
    this.#heard.set(id, now());
    return row;
  }

  /** A request of an open session has come. */
  touch(id: string): void {
    if (this.#heard.has(id)) this.#heard.set(id, now());
  }

  /** Resolves when its models have left the stages. The first of several counts. */
  finish(id: string): Promise<void> {
    const ending = this.#ending.get(id) ?? this.#end(id);
    this.#ending.set(id, ending);
    return ending.finally(() => this.#ending.delete(id));
  }

  async #end(id: string): Promise<void> {
    this.#heard.delete(id);
    this.store.endSession(id);
    await this.training.end(id);
    this.checkpoints.endSession(id);
  }

  #sweep(): void {
    // What fails here has lost the stages, and the server ends by that.
    const ignored = () => undefined;
    for (const [id, heard] of this.#heard) if (now() - heard > 1000 * this.seconds) this.finish(id).catch(ignored);
    this.checkpoints.removeExpired().catch(ignored);
    this.store.prune(KEEP_SECONDS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

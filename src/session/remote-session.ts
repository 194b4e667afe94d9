// A session of another process on this machine: the requests of Session, over the bus.

import { resolve } from "node:path";
import { now, sleep } from "../base/clock.ts";
import { MloraError, RequestError, RunError } from "../base/errors.ts";
import { askControl, type ControlRequest, isStarting, newRequestNumber, type RunStatus, starting } from "../bus/control.ts";
import { connectSealed } from "../bus/seal.ts";
import { knownRuns, type RunEntry } from "../cluster/registry.ts";
import { formatRecipe } from "../recipe/load.ts";
import type { Recipe } from "../recipe/recipe.ts";
import type { ForkRequest } from "./late-requests.ts";

/** How long an answer may take: a run may compute a pass before it answers, and several while others ask it. */
const PATIENCE_MS = { status: 10_000, other: 120_000 };
/** How long a lost server is sought while the registry lists the run: a run notices the end of its server within seconds. */
const AWAY_MS = 15_000;
const LOOK_MS = 100;

export type RemoteOptions = {
  /** Called where a request is asked again, with the reason. */
  readonly notice?: (text: string) => void;
};

/** All sessions of this user on this machine, by the ids of their runs. */
export const remoteSessions = (options?: RemoteOptions): RemoteSession[] =>
  knownRuns().map((entry) => new RemoteSession(entry, options));

/**
 * Requests wait while the run's stages are being opened, but `status`, which is refused then. They throw what the session does,
 * and RunErrors: `control.silent`, and `control.lost` where the run is gone.
 */
export class RemoteSession {
  constructor(
    private readonly entry: RunEntry,
    private readonly options: RemoteOptions = {},
  ) {}

  get run(): string {
    return this.entry.run;
  }
  /** The process that trains. */
  get pid(): number {
    return this.entry.pid;
  }
  get output(): string {
    return this.entry.output;
  }
  /** False while its stages are being opened. */
  get isOpen(): boolean {
    return this.entry.reach !== null;
  }

  status(): Promise<RunStatus> {
    return this.#ask({ type: "status" });
  }

  stop(adapter: string | null = null): Promise<string> {
    return this.#ask({ type: "stop", adapter });
  }

  pause(adapter: string | null = null): Promise<string> {
    return this.#ask({ type: "pause", adapter });
  }

  resume(adapter: string | null = null): Promise<string> {
    return this.#ask({ type: "resume", adapter });
  }

  fork({ adapter, name, changes }: ForkRequest): Promise<string> {
    return this.#ask({ type: "fork", adapter, name, changes: { ...changes } });
  }

  /** The run reads the data of the recipe; `reading` is called with its progress, in words. */
  async add(recipe: Recipe, reading: (text: string) => void = () => undefined): Promise<string> {
    const ask = (request: Extract<ControlRequest, { type: "add" | "outcome" }>) => this.#ask(request);
    const begin = () => ask({ type: "add", text: formatRecipe(recipe), path: recipe.path });
    let answer = await begin();
    while (typeof answer !== "string") {
      reading(answer.reading);
      answer = await ask({ type: "outcome", ticket: answer.ticket }).catch((error) => {
        if (isStarting(error)) return begin(); // it was still being read when its stages were closed
        throw error;
      });
    }
    return answer;
  }

  /**
   * Asks, and where the run's server is gone, or its stages are being opened, asks again under the same number at the run's
   * next address.
   */
  async #ask<R extends ControlRequest>(request: R) {
    const { entry, options } = this;
    const isStatus = request.type === "status";
    const patience = isStatus ? PATIENCE_MS.status : PATIENCE_MS.other;
    const number = newRequestNumber();
    let begin = now();
    let away = begin;
    let lost: MloraError | null = null;
    let awaited: MloraError | null = null;
    for (let at: RunEntry | undefined = entry; ; at = knownRuns().find(({ run }) => run === entry.run)) {
      if (awaited && !at) throw new RunError("control.lost", `${awaited.message}, and the run is over`, "look into its folder");
      let isAsked = false;
      try {
        if (!at?.reach) throw starting();
        isAsked = true;
        await using connection = await connectSealed(at.reach.address, "mlora control", at.reach.key);
        return await askControl(connection, entry.run, request, patience, number);
      } catch (error) {
        if (isGone(error)) {
          if (!lost && !isStatus) options.notice?.(`${error.message}; it is asked again where it answers next`);
          lost = error;
        } else if (!isStarting(error) || (isStatus && !lost)) throw error;
        else if (isAsked && request.type === "outcome")
          throw error; // what the addition came to
        else {
          if (!awaited) options.notice?.(`${error.message}: it is asked when they are open`);
          away = now();
          if (!isStatus) begin = away; // however long that takes
        }
        awaited = error;
        if (now() - begin > patience || now() - away > AWAY_MS) throw lost ?? error;
      }
      await sleep(LOOK_MS);
    }
  }
}

/** Its server is gone, or another server has its port. */
const isGone = (error: unknown): error is MloraError =>
  error instanceof MloraError && (error.code === "control.lost" || error.code.startsWith("nats."));

/** The session by its run's id, the beginning of the id, or its output folder. Throws a RequestError, `control.run`. */
export function findSession(
  name: string,
  describe: (session: RemoteSession) => string,
  options?: RemoteOptions,
): RemoteSession {
  const all = remoteSessions(options);
  const found = all.filter(({ run, output }) => run === name || output === resolve(name));
  const [only, ...others] = found.length > 0 ? found : all.filter(({ run }) => run.startsWith(name));
  if (only && others.length === 0) return only;
  const list = all.map((session) => `\n  ${describe(session)}`).join("");
  if (only) throw new RequestError("control.run", `several runs begin with '${name}':${list}`, "give more of the id");
  const what = all.length === 0 ? "no run is under way here" : `these runs are under way here:${list}`;
  throw new RequestError(
    "control.run",
    `there is no run '${name}'; ${what}`,
    "name a run by its id, as mlora ps lists it, or by its output folder",
  );
}

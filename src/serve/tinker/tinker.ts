// All of Tinker's protocol over the engine: made with the server, begun when it listens, stopped before the stages are closed.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { TextModel } from "../../session/generation/text-model.ts";
import type { Primitives } from "../../session/primitives/primitives.ts";
import type { ServeConfig } from "../config.ts";
import type { RecipeMaker } from "../job-recipe.ts";
import type { Models } from "../models.ts";
import type { Rates } from "../rates.ts";
import type { Database } from "../store.ts";
import type { Usage } from "../usage.ts";
import { Checkpoints } from "./checkpoints.ts";
import { Futures } from "./futures.ts";
import { Samples } from "./sampling.ts";
import { Sessions } from "./sessions.ts";
import { TinkerStore } from "./store.ts";
import { Training } from "./training.ts";

/** Samples of a key that have no result, at most: a client has 2000 under way by itself. */
const MOST_SAMPLES = 8192;

export type TinkerOptions = {
  readonly db: Database;
  readonly config: ServeConfig;
  readonly engine: Primitives;
  readonly models: Models;
  readonly recipes: RecipeMaker;
  readonly texts: TextModel;
  readonly usage: Usage;
  readonly rates: Rates;
  readonly log: (event: string, more: Readonly<Record<string, unknown>>) => void;
  readonly lost: (error: unknown) => void;
};

export class Tinker {
  readonly store: TinkerStore;
  readonly futures: Futures;
  readonly checkpoints: Checkpoints;
  readonly training: Training;
  readonly samples: Samples;
  readonly sessions: Sessions;
  readonly base: { readonly name: string; readonly folder: string; readonly architecture: string; readonly context: number };

  constructor({ db, config, ...of }: TinkerOptions) {
    const { engine, models } = of;
    const { spec, stages } = engine.plan;
    const folder = join(config.folder, "tinker");
    const states = join(folder, "states");
    mkdirSync(states, { recursive: true });
    this.store = new TinkerStore(db);
    this.futures = new Futures(this.store);
    this.checkpoints = new Checkpoints(this.store, engine, models, join(folder, "weights"), config.limits.disk_bytes);
    const heard = (session: string) => this.sessions.touch(session);
    const common = { ...of, store: this.store, futures: this.futures, heard };
    const saving = {
      folder: states,
      saveSeconds: config.jobs.save_seconds,
      checkpoints: this.checkpoints,
      most: config.tinker.models,
    };
    this.training = new Training({ ...common, ...saving });
    this.samples = new Samples({ ...common, most: MOST_SAMPLES });
    this.sessions = new Sessions(this.store, this.training, this.checkpoints, config.tinker.session_seconds);
    this.base = {
      ...{ name: config.name, folder: config.base, architecture: spec.family },
      context: Math.min(stages[0]!.sizes.cache!.capacity, spec.maxPositions),
    };
  }

  /** Continues what an earlier server left. */
  begin(): void {
    this.checkpoints.begin();
    this.sessions.begin();
    this.training.begin();
    this.samples.begin();
  }

  async stop(): Promise<void> {
    this.sessions.stop();
    this.futures.close();
    await Promise.all([this.training.stop(), this.samples.stop()]);
  }
}

// States of models on disk: now and then one is written after a step, so that a kill has the server make again what came after
// it alone.

import { mkdirSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { now } from "../../base/clock.ts";
import type { Primitives } from "../../session/primitives/primitives.ts";
import { isFatal } from "../errors.ts";
import { textFor } from "./futures.ts";
import type { ModelRow, TinkerStore } from "./store.ts";

export type StatesOptions = {
  readonly engine: Primitives;
  readonly store: TinkerStore;
  /** Folder of all models' states. */
  readonly folder: string;
  readonly saveSeconds: number;
  readonly log: (event: string, more: Readonly<Record<string, unknown>>) => void;
  /** Called with what has lost the stages. */
  readonly lost: (error: unknown) => void;
};

/** Of a model whose session is open: the last of its requests whose effect is saved. */
export type Saved = {
  readonly row: ModelRow;
  /** The engine's name of it. */
  readonly adapter: string;
  saved: number;
  savedAt: number;
  /** Resolves when nothing of it is being written. */
  saving: Promise<void>;
};

export class States {
  /** One at a time: each is large, and is in memory until it is written. */
  #isWriting = false;

  constructor(private readonly options: StatesOptions) {}

  /** Removes what a kill has left. */
  begin(): void {
    const { store, folder } = this.options;
    const kept = new Map(store.models({ isOpen: true }).map(({ seq, saved }) => [`${seq}`, `state-${saved}`]));
    for (const name of readdirSync(folder))
      if (!kept.has(name)) rmSync(join(folder, name), { recursive: true, force: true });
      else
        for (const state of readdirSync(join(folder, name)))
          if (state !== kept.get(name)) rmSync(join(folder, name, state), { recursive: true, force: true });
  }

  pathOf({ seq }: ModelRow, number: number): string {
    return join(this.options.folder, `${seq}`, `state-${number}`);
  }

  remove({ seq }: ModelRow): void {
    rmSync(join(this.options.folder, `${seq}`), { recursive: true, force: true });
  }

  /** After a step, when it is time; requests that follow do not wait for it. */
  saveMeanwhile(of: Saved, number: number): void {
    const { saveSeconds, log, lost } = this.options;
    if (this.#isWriting || now() - of.savedAt < 1000 * saveSeconds) return;
    this.#isWriting = true;
    of.saving = this.save(of, number)
      .catch((error) => {
        if (isFatal(error)) lost(error);
        else log("error", { model: of.row.id, error: textFor(error) });
      })
      .finally(() => {
        this.#isWriting = false;
      });
  }

  /** Saves a model after its request of this number. */
  async save(of: Saved, number: number): Promise<void> {
    const { engine, store, log } = this.options;
    // A state has no gradients: those of a step that failed are made again from an earlier one.
    if (!engine.has(of.adapter) || engine.hasGradient(of.adapter)) return;
    const folder = this.pathOf(of.row, number);
    of.savedAt = now();
    try {
      mkdirSync(join(folder, ".."), { recursive: true });
      await engine.saveState(of.adapter, folder);
    } catch (error) {
      if (isFatal(error)) throw error;
      // As on a full disk: the requests are kept, and it is tried again.
      log("error", { model: of.row.id, error: textFor(error) });
      rmSync(folder, { recursive: true, force: true });
      return;
    }
    const before = of.saved;
    store.saved(of.row.id, number);
    of.saved = number;
    if (before >= 0) rmSync(this.pathOf(of.row, before), { recursive: true, force: true });
  }
}

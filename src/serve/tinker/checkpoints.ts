// Weights that clients save, by the path tinker://MODEL/KIND/NAME, and snapshots to sample from, which go with their session.

import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { randomText } from "../../base/secret.ts";
import { sum } from "../../base/shape.ts";
import { formatBytes } from "../../base/units.ts";
import type { Primitives } from "../../session/primitives/primitives.ts";
import { badRequest } from "../errors.ts";
import { seconds } from "../files.ts";
import { HIDDEN, type Models } from "../models.ts";
import { type CheckpointKind, type CheckpointRow, type ModelAsked, type ModelRow, pathOf, type TinkerStore } from "./store.ts";

/** Snapshots of a model that stay: a loop of reinforcement learning makes one at each step. */
const SNAPSHOTS = 64;
/** Parts of a folder of weights to train on: all that training resumes from, and the weights alone. */
const [STATE, MODEL] = ["state", "model"];

type Saved<T> = T & { /** Puts it down in the tables. */ readonly add: () => void };
type Asked = {
  readonly ttl_seconds?: number | null | undefined;
  readonly overwrite?: boolean | null | undefined;
  readonly user_metadata?: Readonly<Record<string, unknown>> | null | undefined;
};

export class Checkpoints {
  constructor(
    private readonly store: TinkerStore,
    private readonly engine: Primitives,
    private readonly models: Models,
    private readonly folder: string,
    /** Bytes of a tenant's checkpoints, at most. */
    private readonly most: number,
  ) {
    mkdirSync(folder, { recursive: true });
  }

  /** Removes what a kill has left. */
  begin(): void {
    this.models.removeReplaced();
    const known = new Set(this.store.checkpoints({}).map(({ folder }) => folder));
    for (const name of readdirSync(this.folder)) {
      const folder = join(this.folder, name);
      const isKnown = known.has(folder) || this.models.hasFolder(folder);
      if (!isKnown) rmSync(folder, { recursive: true, force: true });
    }
  }

  /** Writes the adapter as it is. Throws an ApiError where the name is taken. */
  async save(
    { id, tenant, asked }: ModelRow,
    adapter: string,
    kind: CheckpointKind,
    name: string,
    { ttl_seconds, overwrite, user_metadata }: Asked,
  ): Promise<Saved<{ readonly row: Omit<CheckpointRow, "seq" | "created_at" | "is_public"> }>> {
    const known = this.store.knownCheckpoint(id, kind, name);
    if (known && !overwrite) throw badRequest(`There are weights '${pathOf(known)}' already: give 'overwrite'.`, "path");
    if (this.store.checkpointBytes(tenant) >= this.most)
      throw badRequest(`This key's weights have ${formatBytes(this.most)}, the most that they may have: delete some.`, "path");
    const folder = this.#folder();
    if (kind === "weights") {
      mkdirSync(folder);
      await this.engine.saveState(adapter, join(folder, STATE));
      await this.engine.save(adapter, join(folder, MODEL));
    } else await this.engine.save(adapter, folder);
    const row = {
      ...{ model: id, kind, name, tenant, folder, bytes: bytesIn(folder), asked: { ...asked, from: null } },
      ...{ expires_at: ttl_seconds == null ? null : seconds() + ttl_seconds, metadata: user_metadata ?? null },
    };
    const add = () => {
      const before = this.store.checkpointRow(id, kind, name);
      if (before) this.store.removeCheckpoint(before);
      if (before && kind !== "sampler_weights") queueMicrotask(() => this.#removeReplaced(before));
      this.store.addCheckpoint(row);
      if (kind === "sampler_weights") this.models.replace({ name: pathOf(row), tenant, folder, parent: this.models.base.name });
    };
    return { row, add };
  }

  /** Removes what others took the place of, once that is in the tables: on a full disk it may not be. */
  #removeReplaced({ model, kind, name, folder }: CheckpointRow): void {
    if (this.store.checkpointRow(model, kind, name)?.folder === folder) return;
    rmSync(folder, { recursive: true, force: true });
  }

  /** Weights to sample from until the session ends, as its n-th sampler. Throws an ApiError where the number is taken. */
  async snapshot(
    { id: source, tenant, session }: ModelRow,
    adapter: string,
    number: number,
  ): Promise<Saved<{ readonly id: string }>> {
    const id = samplerId(session, number);
    if (this.store.hasSampler(id)) throw badRequest(`The sampler '${id}' is there already.`, "sampling_session_seq_id");
    const folder = this.#folder();
    await this.engine.save(adapter, folder);
    const name = `${HIDDEN}${id}`;
    const add = () => {
      this.models.add({ name, tenant, folder, parent: this.models.base.name });
      this.store.addSampler({ id, tenant, session, model: name, path: null, source });
      for (const old of this.store.snapshots(source).slice(SNAPSHOTS)) this.#removeSnapshot(old.model!);
    };
    return { id, add };
  }

  /** The folder of a checkpoint's `folder` that `load` takes: with `optimizer` with its moments. */
  stateIn(folder: string, optimizer: boolean): string {
    return join(folder, optimizer ? STATE : MODEL);
  }

  /** Throws an ApiError where the model cannot continue from the checkpoint. */
  checkLoads(found: CheckpointRow, asked: ModelAsked | null): void {
    if (found.kind !== "weights")
      throw badRequest(`'${pathOf(found)}' are weights to sample from: only those of save_state load.`, "path");
    const shape = ({ rank, attention, mlp }: ModelAsked) => `${rank} ${attention} ${mlp}`;
    if (asked && shape(found.asked) !== shape(asked))
      throw badRequest(
        `'${pathOf(found)}' are weights of rank ${found.asked.rank}, or of other layers, than the model.`,
        "path",
      );
  }

  async remove(row: CheckpointRow): Promise<void> {
    this.store.removeCheckpoint(row);
    const model = this.models.known(pathOf(row));
    if (row.kind === "sampler_weights" && model) await this.models.remove(model);
    else rmSync(row.folder, { recursive: true, force: true });
  }

  /** Removes a session's snapshots. */
  endSession(session: string): void {
    for (const { model, source } of this.store.samplers(session)) if (source !== null) this.#removeSnapshot(model!);
  }

  #removeSnapshot(model: string): void {
    const row = this.models.known(model);
    if (row) this.models.remove(row).catch(() => undefined); // after the samples that use it; fails where the stages are lost
  }

  async removeExpired(): Promise<void> {
    for (const row of this.store.expired()) await this.remove(row);
  }

  #folder(): string {
    return join(this.folder, randomText(24));
  }
}

export const samplerId = (session: string, number: number): string => `${session}:sample:${number}`;

/** Files of a folder and its folders, by their paths in it. */
export const filesIn = (folder: string): string[] =>
  existsSync(folder)
    ? (readdirSync(folder, { recursive: true }) as string[]).filter((name) => statSync(join(folder, name)).isFile())
    : [];

const bytesIn = (folder: string): number => sum(filesIn(folder).map((name) => statSync(join(folder, name)).size));

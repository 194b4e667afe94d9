// Models by name: the base, and the adapters that a tenant's jobs have made or that were loaded for it. An adapter is put on
// the stages when it is asked for the first time.

import { existsSync, rmSync } from "node:fs";
import { now } from "../base/clock.ts";
import type { Primitives } from "../session/primitives/primitives.ts";
import { modelNotFound } from "./errors.ts";
import { seconds } from "./files.ts";
import type { RecipeMaker } from "./job-recipe.ts";
import type { Database } from "./store.ts";

export type ModelRow = {
  readonly seq: number;
  readonly name: string;
  readonly tenant: string;
  readonly created_at: number;
  readonly folder: string;
  readonly parent: string;
  /** 1 for one that was loaded from a folder of adapters, which stays when the model goes. */
  readonly is_loaded: number;
};

/** How names begin that no list has. */
export const HIDDEN = "tinker-sampler:";

export class Models {
  /** When each adapter that is at hand was last asked for. */
  readonly #asked = new Map<string, number>();
  readonly #loading = new Map<string, Promise<void>>();
  /** Uses of adapters that are under way: an answer may wait for long before it begins. */
  readonly #uses = new Map<string, number>();

  constructor(
    private readonly db: Database,
    private readonly engine: Primitives,
    private readonly recipes: RecipeMaker,
    readonly base: { readonly name: string; readonly created_at: number; readonly folder: string },
    private readonly most: number,
  ) {}

  add(of: Pick<ModelRow, "name" | "tenant" | "folder" | "parent">, isLoaded = false): void {
    const { name, tenant, folder, parent } = of;
    this.db.run(
      "INSERT OR IGNORE INTO models (name, tenant, created_at, folder, parent, is_loaded) VALUES (?, ?, ?, ?, ?, ?)",
      ...[name, tenant, seconds(), folder, parent, Number(isLoaded)],
    );
  }

  list(tenant: string): ModelRow[] {
    return this.db.all<ModelRow>(
      "SELECT * FROM models WHERE tenant = ? AND name NOT GLOB ? ORDER BY seq",
      tenant,
      `${HIDDEN}*`,
    );
  }

  /** Null for the base model. Throws an ApiError 404 where the tenant has no such model. */
  find(tenant: string, name: string): ModelRow | null {
    if (name === this.base.name) return null;
    const row = this.db.get<ModelRow>("SELECT * FROM models WHERE name = ? AND tenant = ?", name, tenant);
    if (!row) throw modelNotFound(name);
    return row;
  }

  /** Of any tenant; null where there is none. */
  known(name: string): ModelRow | null {
    return this.db.get<ModelRow>("SELECT * FROM models WHERE name = ?", name);
  }

  hasFolder(folder: string): boolean {
    return this.db.get("SELECT 1 FROM models WHERE folder = ?", folder) !== null;
  }

  /** Puts a model in the place of the one that has its name, which goes once that is in the tables. */
  replace(of: Pick<ModelRow, "name" | "tenant" | "folder" | "parent">): void {
    const before = this.known(of.name);
    if (before) this.db.run("UPDATE models SET name = ? WHERE seq = ?", `${HIDDEN}${before.seq}`, before.seq);
    this.add(of);
    if (before) queueMicrotask(() => this.removeReplaced()); // after the transaction, which may fail
  }

  /** Removes the models whose names others have taken. */
  removeReplaced(): void {
    const sql = "SELECT * FROM models WHERE name = ? || seq";
    // Fails where the stages are lost.
    for (const row of this.db.all<ModelRow>(sql, HIDDEN)) this.remove(row).catch(() => undefined);
  }

  /** Whether any tenant has the name. */
  isTaken(name: string): boolean {
    return name === this.base.name || this.known(name) !== null;
  }

  /** Lets go of a model, and of its files unless they were only loaded. */
  async remove(row: ModelRow): Promise<void> {
    this.db.run("DELETE FROM models WHERE seq = ?", row.seq);
    const adapter = adapterOf(row);
    this.#asked.delete(adapter);
    await this.#loading.get(adapter)?.catch(() => undefined);
    if (this.engine.has(adapter)) await this.engine.remove(adapter);
    if (!row.is_loaded) rmSync(row.folder, { recursive: true, force: true });
  }

  /**
   * Does the work with the adapter's name among the primitives', where it stays until the work is done; null for the base
   * model. Throws an ApiError 404 where the model is deleted.
   */
  async use<T>(row: ModelRow | null, work: (adapter: string | null) => Promise<T>): Promise<T> {
    if (row === null) return await work(null);
    const adapter = adapterOf(row);
    this.#uses.set(adapter, (this.#uses.get(adapter) ?? 0) + 1);
    try {
      await this.#ready(adapter, row);
      return await work(adapter);
    } finally {
      const left = this.#uses.get(adapter)! - 1;
      if (left === 0) this.#uses.delete(adapter);
      else this.#uses.set(adapter, left);
    }
  }

  async #ready(adapter: string, row: ModelRow): Promise<void> {
    if (this.db.get("SELECT 1 FROM models WHERE seq = ?", row.seq) === null) throw modelNotFound(row.name);
    this.#asked.set(adapter, now());
    if (!this.engine.has(adapter)) {
      if (!existsSync(row.folder)) throw modelNotFound(row.name);
      const loading = this.#loading.get(adapter) ?? this.#load(adapter, row);
      this.#loading.set(adapter, loading);
      try {
        await loading;
      } finally {
        this.#loading.delete(adapter);
      }
    } else await this.#loading.get(adapter);
  }

  async #load(adapter: string, { folder, tenant }: ModelRow): Promise<void> {
    const recipe = this.recipes.ofFolder(adapter, folder, this.engine.plan.spec);
    await this.engine.add(recipe, undefined, tenant);
    const isUnused = ([name]: readonly [string, number]) => this.engine.has(name) && !this.#uses.has(name);
    const others = [...this.#asked].filter(isUnused).sort(([, a], [, b]) => a - b);
    for (const [name] of others.slice(0, Math.max(0, this.#asked.size - this.most))) {
      this.#asked.delete(name);
      this.engine.remove(name).catch(() => undefined); // after the answers that use it; fails where the stages are lost
    }
  }
}

const adapterOf = ({ seq }: ModelRow): string => `model-${seq}`;

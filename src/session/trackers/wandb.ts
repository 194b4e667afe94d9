// Offline runs of W&B in a run's folder, one for each adapter: `wandb sync OUTPUT/wandb/offline-run-*` sends them. A resumed
// run continues the files of the one before, from the step that it resumes at.

import { createHash } from "node:crypto";
import { readdirSync } from "node:fs";
import { hostname } from "node:os";
import { basename, join } from "node:path";
import { removeQuietly } from "../../base/atomic.ts";
import { wallTime } from "../../base/clock.ts";
import { environment } from "../../base/env.ts";
import { MloraError, textOf } from "../../base/errors.ts";
import { randomText } from "../../base/secret.ts";
import { VERSION } from "../../base/version.ts";
import { continueLog, type Row, STEP, WandbLog } from "../../files/wandb.ts";
import type { Plan } from "../../plan/plan.ts";
import { type AdapterRecipe, WANDB } from "../../recipe/recipe.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import type { Listener } from "../events/events.ts";
import type { Resumed } from "../run/resume.ts";
import { withoutSecrets } from "./public-settings.ts";
import { scalarsOf } from "./scalars.ts";
import { type Tracking, WaitingBytes } from "./tracking-files.ts";

/** An adapter's run, under way. */
type Open = { readonly path: string; readonly log: WandbLog; readonly began: number; last: Row };

/** What of an id says which adapter it is of; before it are random characters, since other runs have such names, too. */
const tagOf = (adapter: string): string => createHash("sha256").update(adapter).digest("hex").slice(0, 8);
const ID_RANDOM = 8;

export function wandb(plan: Plan, output: string, resumed: Resumed | null, notice: (text: string) => void): Tracking {
  const waiting = new WaitingBytes(output, notice);
  const runs = new Map<string, Open | null>();
  const open = (adapter: string): Open | null => {
    if (resumed?.ended.has(adapter)) return null;
    const last = resumed?.steps.get(adapter) ?? 0;
    if (!runs.has(adapter)) runs.set(adapter, openRun(plan, output, adapter, last, waiting, notice));
    return runs.get(adapter)!;
  };
  const listener: Listener = (event) => {
    if (event.type === "ended") {
      const run = open(event.adapter);
      if (!run) return;
      waiting.add(run.path, run.log.summary(run.last));
      waiting.add(run.path, run.log.end(event.result.status === "failed", wallTime() / 1000 - run.began));
      return;
    }
    const found = scalarsOf(event, (index) => plan.adapters[index]!.stepsPerEpoch);
    const run = found && open(found.adapter);
    if (!run) return;
    const time = wallTime() / 1000;
    const row = { ...found.scalars, [STEP]: found.step, _timestamp: time, _runtime: time - run.began };
    run.last = { ...run.last, ...row };
    waiting.add(run.path, run.log.history(row));
    if (event.type === "evaluation") waiting.add(run.path, run.log.summary(run.last));
  };
  return { listener, write: () => waiting.write(), flush: () => waiting.end() };
}

/** Continues an adapter's run after `last` steps, or begins one. Null, with a notice, where its file cannot be changed. */
function openRun(
  plan: Plan,
  output: string,
  adapter: string,
  last: number,
  waiting: WaitingBytes,
  notice: (text: string) => void,
): Open | null {
  const began = wallTime() / 1000;
  const earlier = folderOf(join(output, WANDB), adapter);
  if (earlier !== null) {
    const path = join(output, WANDB, earlier.name, `run-${earlier.id}.wandb`);
    try {
      const log = continueLog(path, (row) => row[STEP]! < last || (row[STEP] === last && "train/loss" in row));
      for (const mark of ["synced", "syncstate"]) removeQuietly(`${path}.${mark}`); // W&B sends it anew, with what follows
      if (log) return { path, log, began: earlier.began, last: {} };
    } catch (error) {
      if (!(error instanceof MloraError)) throw error;
      notice(`${textOf(error)}; the run of ${adapter} in W&B's files ends before this`);
      return null;
    }
  }
  const id = `${randomText(ID_RANDOM)}${tagOf(adapter)}`;
  const path = join(output, WANDB, `offline-run-${stampOf(began)}-${id}`, `run-${id}.wandb`);
  const recipe = plan.recipe.adapters.find(({ name }) => name === adapter)!;
  const log = new WandbLog();
  const facts = {
    id,
    entity: environment("WANDB_ENTITY") ?? "",
    project: environment("WANDB_PROJECT") ?? "mlora",
    group: basename(output),
    name: adapter,
    config: { model: plan.recipe.model.path, precision: plan.recipe.model.precision, ...settingsOf(recipe) },
  };
  waiting.add(path, log.begin({ ...facts, began, host: hostname(), version: VERSION }));
  return { path, log, began, last: {} };
}

/** What goes to W&B's server. */
const settingsOf = (recipe: AdapterRecipe) => withoutSecrets(adapterTable(recipe)) as Readonly<Record<string, unknown>>;

/** 20261130_024500: the local time, as W&B's own programs write it. */
const stampOf = (seconds: number): string => {
  const at = new Date(seconds * 1000);
  const two = (value: number) => `${value}`.padStart(2, "0");
  const [day, time] = [
    [at.getMonth() + 1, at.getDate()],
    [at.getHours(), at.getMinutes(), at.getSeconds()],
  ];
  return `${at.getFullYear()}${day!.map(two).join("")}_${time!.map(two).join("")}`;
};

const FOLDER = /^offline-run-(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)-([a-z0-9]+)$/;

/** The newest folder of an adapter's run. */
function folderOf(
  folder: string,
  adapter: string,
): { readonly name: string; readonly id: string; readonly began: number } | null {
  const found = namesIn(folder).flatMap((name) => {
    const [, year, month, day, hour, minute, second, id] = FOLDER.exec(name) ?? [];
    if (id?.length !== ID_RANDOM + 8 || !id.endsWith(tagOf(adapter))) return [];
    const at = new Date(Number(year), Number(month) - 1, Number(day), Number(hour), Number(minute), Number(second));
    return [{ name, id, began: at.getTime() / 1000 }];
  });
  return found.toSorted((a, b) => a.began - b.began).at(-1) ?? null;
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

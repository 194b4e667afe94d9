// Checkpoints: all of an adapter that a run needs to resume as if it had never stopped, in one folder a checkpoint.
//
//   <run>/checkpoints/<adapter>/step-000120/state.safetensors    parameters and both moments, f32, as they are without padding
//                                           /checkpoint.json      where it stands, and the hash of the other file
//
// Nothing in it depends on the device or on the number of stages. A folder appears under its name when it is whole. Where a
// step has a checkpoint already, the next is step-000000120-2: what is there is removed only when its successor is on the disk.
// One that turns out to be damaged is set aside as step-000000120.damaged, so that it is neither the newest nor one of those
// that are kept.

import { closeSync, existsSync, readSync, renameSync, statfsSync, statSync } from "node:fs";
import { basename, join } from "node:path";
import * as v from "valibot";
import { isTemporary, replaceTogether, syncFolder, writeFileAtomic } from "../base/atomic.ts";
import { RunError, textOf } from "../base/errors.ts";
import { hintOf, writeError } from "../base/faults.ts";
import type { LayerRange } from "../base/layers.ts";
import { openToRead } from "../base/open-file.ts";
import { count } from "../base/schema.ts";
import { sum } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { Linear } from "../families/linears.ts";
import type { Placed, PoolAdapter } from "../methods/adapter.ts";
import { type FactorTensor, factorPlace, layoutAdapter, placeAmong, tensorsIn } from "../methods/layout.ts";
import { type BlockName, type Blocks, blocksIn, type OptimizerName, stateOf, type Values } from "../methods/optimizers.ts";
import type { Factor } from "../methods/registry.ts";
import { takeFactor } from "./factors.ts";
import { measured, readJsonObject } from "./json.ts";
import { foldersIn, removeFolder } from "./owned.ts";
import { openSafetensors, type TensorData, writeSafetensors } from "./safetensors.ts";

const FORMAT = 1;
const STATE = "state.safetensors";
const PROGRESS = "checkpoint.json";
/** On held-out rows, of which `exact` are predicted. */
export const evaluationSchema = v.strictObject({
  loss: measured,
  exact: v.number(),
  rows: v.number(),
  metrics: v.exactOptional(v.record(v.string(), v.number())),
});

/**
 * What an adapter is made of: its settings, its data, its base model and the saved adapters that keys of its recipe name, as
 * fingerprints.
 */
export const madeSchema = v.strictObject({
  settings: v.string(),
  data: v.string(),
  model: v.string(),
  adapters: v.exactOptional(v.record(v.string(), v.string())),
});

const progressSchema = v.strictObject({
  format: v.literal(FORMAT),
  adapter: v.string(),
  /** Optimizer steps made. */
  step: count,
  tokens: v.number(),
  seconds: v.number(),
  firstLoss: v.nullable(v.number()),
  lastLoss: v.nullable(v.number()),
  before: v.nullable(evaluationSchema),
  /** Of early stopping (schedule/sweeps.ts). */
  best: v.nullable(
    v.strictObject({
      loss: measured,
      step: v.number(),
      since: v.number(),
      judged: v.number(),
      mark: v.exactOptional(v.number()),
    }),
  ),
  made: madeSchema,
  sha256: v.string(),
});
type Written = v.InferOutput<typeof progressSchema>;
/** Where an adapter stands. */
export type Progress = Omit<Written, "format" | "sha256">;

/** What a checkpoint is made from. */
export type Snapshot = Placed & {
  readonly spec: ModelSpec;
  readonly method?: PoolAdapter["method"] | undefined;
  readonly optimizer?: OptimizerName | undefined;
  readonly stages: readonly { readonly layerRange: LayerRange; readonly blocks: Blocks }[];
};

export type Checkpoint = {
  readonly folder: string;
  readonly progress: Progress;
  readonly factors: (what: BlockName) => FactorTensor<Values>[];
};

const NAME = /^step-(\d+)(?:-(\d+))?$/;
const nameOf = (step: number, turn = 1): string => `step-${`${step}`.padStart(9, "0")}${turn > 1 ? `-${turn}` : ""}`;
const HALF = /^step-\d+(-\d+)?\.part$/;
const DAMAGED = /^step-\d+(-\d+)?\.damaged$/;
const tensorName = (what: BlockName, { layer, linear, factor }: Pick<FactorTensor, "layer" | "linear" | "factor">): string =>
  `${what}.${layer}.${linear}.${factor}`;
/** Its parts. A linear's name alone may have dots in it: "mlp.shared_expert.up_proj". */
const TENSOR = /^([^.]+)\.(\d+)\.(.+)\.([^.]+)$/;

/**
 * Writes a checkpoint among those in `folder`, and lets go of all but the `keep` newest. Throws a RunError; then nothing is
 * changed. On a full disk the oldest of two or more makes room, where that is enough; `notice` is called before.
 */
export function writeCheckpoint(
  folder: string,
  progress: Progress,
  snapshot: Snapshot,
  keep: number,
  notice: (text: string) => void = () => undefined,
): void {
  const tensors = tensorsOf(snapshot);
  const whole = freeName(folder, progress.step);
  try {
    try {
      fill(folder, whole, progress, tensors);
    } catch (error) {
      if (!isFull(error) || !makeRoom(folder, sum(tensors.map(({ data }) => data.byteLength)), progress.step, notice))
        throw error;
      fill(folder, whole, progress, tensors);
    }
  } catch (error) {
    throw error instanceof RunError ? error : writeError(whole, error);
  }
  const older = checkpointsIn(folder).filter((path) => path !== whole);
  for (const old of older.slice(Math.max(0, keep - 1))) removeCheckpoint(old);
}

function tensorsOf(snapshot: Snapshot): TensorData[] {
  const { spec, stages, ...adapter } = snapshot;
  const layouts = stages.map(({ layerRange }) => layoutAdapter(spec, layerRange, adapter));
  return blocksIn(adapter.optimizer).flatMap((what) => {
    const { dtype, per } = stateOf(adapter.optimizer)[what]!;
    return stages.flatMap(({ layerRange, blocks }, stage) =>
      tensorsIn(spec, layerRange, adapter).map((at) => {
        const place = placeAmong(factorPlace(spec, layouts[stage]!, at.layer, at.linear, at.factor), per);
        const data = takeFactor(blocks[what]!, place);
        return { name: tensorName(what, at), dtype, shape: [place.rows, place.columns], data };
      }),
    );
  });
}

/** Writes all of it under another name, then gives it its own. What it could not write is gone when it throws. */
function fill(folder: string, whole: string, progress: Progress, tensors: readonly TensorData[]): void {
  const part = `${whole}.part`;
  try {
    removeCheckpoint(part);
    replaceTogether(part, () => {
      writeSafetensors(join(part, STATE), tensors);
      const written = { format: FORMAT, ...progress, sha256: hashOf(join(part, STATE)) };
      writeFileAtomic(join(part, PROGRESS), `${JSON.stringify({ ...written, seal: sealOf(written) }, null, 2)}\n`);
    });
    renameSync(part, whole);
    syncFolder(folder);
  } catch (error) {
    try {
      removeCheckpoint(part);
    } catch {
      // the fault that is reported is the first one
    }
    throw error;
  }
}

/** Of a step that has a checkpoint already, the first name that no file has. */
function freeName(folder: string, step: number): string {
  for (let turn = 1; ; turn++) {
    const path = join(folder, nameOf(step, turn));
    if (!existsSync(path)) return path;
  }
}

const isFull = (error: unknown): boolean => {
  const { code, cause } = error as { code?: string; cause?: unknown };
  return code === "ENOSPC" || code === "EDQUOT" || (cause !== undefined && isFull(cause));
};

/** Removes the oldest of two or more checkpoints, where one of `bytes` then fits; false where it would not. */
function makeRoom(folder: string, bytes: number, step: number, notice: (text: string) => void): boolean {
  const all = checkpointsIn(folder);
  const oldest = all.at(-1);
  if (all.length < 2 || oldest === undefined) return false;
  const { bavail, bsize } = statfsSync(folder);
  if (statSync(join(oldest, STATE)).size + bavail * bsize < bytes + BESIDE_STATE) return false;
  notice(`the disk is full: the checkpoint ${oldest} makes room for step ${step}`);
  removeCheckpoint(oldest);
  return true;
}

/** Bytes of a checkpoint besides its tensors, and of the folder it is in: no more than these. */
const BESIDE_STATE = 4096;

/** Removes the files of a checkpoint, and its folder where no other file is in it. A link in its place is left. */
function removeCheckpoint(path: string): void {
  removeFolder(path, (name) => [STATE, PROGRESS].some((of) => name === of || isTemporary(name, of)));
}

/** Removes what killed runs were about to write among the checkpoints in `folder`. */
export function removeHalfCheckpoints(folder: string): void {
  for (const name of foldersIn(folder)) if (HALF.test(name)) removeCheckpoint(join(folder, name));
}

/** Removes all checkpoints in `folder`, also those set aside, and the folder where nothing else is in it. */
export function removeCheckpoints(folder: string): void {
  const ours = foldersIn(folder).filter((name) => [NAME, HALF, DAMAGED].some((of) => of.test(name)));
  for (const name of ours) removeCheckpoint(join(folder, name));
  removeFolder(folder, () => false);
}

/** Gives a damaged checkpoint a name under which it does not count; its new path, or null where it is to be left. */
export function setAside(path: string): string | null {
  const aside = `${path}.damaged`;
  try {
    if (existsSync(aside)) removeCheckpoint(aside);
    renameSync(path, aside);
    return aside;
  } catch {
    return null; // a disk that can only be read: nothing is written among them either
  }
}

/** Folders of checkpoints, the newest first. Links to folders do not count. */
export const checkpointsIn = (folder: string): string[] =>
  foldersIn(folder)
    .flatMap((name) => {
      const [, step, turn = "1"] = NAME.exec(name) ?? [];
      return step === undefined ? [] : { name, step: Number(step), turn: Number(turn) };
    })
    .sort((a, b) => b.step - a.step || b.turn - a.turn)
    .map(({ name }) => join(folder, name));

/** Faults of the machine and not of the file: with more handles, memory or rights it may well be whole. */
const NOT_DAMAGE = ["EMFILE", "ENFILE", "ENOMEM", "EACCES", "EPERM", "EINTR", "ESTALE", "ETIMEDOUT"];
const codeOf = (error: unknown): string => {
  const { code = "", cause } = error as { code?: string; cause?: unknown };
  return NOT_DAMAGE.includes(code) || cause === undefined ? code : codeOf(cause);
};

/**
 * Reads and checks a checkpoint. Throws a RunError: `checkpoint.bad` where it is not what was written, `checkpoint.unreadable`
 * where the machine does not let it be read now.
 */
export function readCheckpoint(folder: string): Checkpoint {
  try {
    const { seal, ...written } = readJsonObject(join(folder, PROGRESS), "checkpoint.json");
    if (seal !== sealOf(written)) throw new Error(`${PROGRESS} is not what was written`);
    const parsed = v.safeParse(progressSchema, written);
    if (!parsed.success) throw new Error(`${PROGRESS}: ${parsed.issues[0].message}`);
    const { format: _, sha256, ...progress } = parsed.output;
    if (Number(NAME.exec(basename(folder))?.[1]) !== progress.step) throw new Error(`it is of step ${progress.step}`);
    const path = join(folder, STATE);
    const found = hashOf(path);
    if (found !== sha256)
      throw new Error(`${STATE} has the SHA-256 ${found.slice(0, 16)}..., ${sha256.slice(0, 16)}... was written`);
    return { folder, progress, factors: (what) => factorsOf(path, what) };
  } catch (error) {
    if (NOT_DAMAGE.includes(codeOf(error)))
      throw new RunError("checkpoint.unreadable", `cannot read the checkpoint ${folder}: ${textOf(error)}`, hintOf(error), {
        cause: error,
      });
    throw new RunError("checkpoint.bad", `the checkpoint ${folder} is damaged: ${textOf(error)}`, undefined, { cause: error });
  }
}

/** What helps where a checkpoint is as it was written, and holds other tensors than an adapter of these settings has. */
export const OTHER_VERSION =
  "it is of another version of mlora: continue with that one, or move the checkpoint away to begin the adapter again";

function factorsOf(path: string, wanted: BlockName): FactorTensor<Values>[] {
  using file = openSafetensors(path);
  return [...file.tensors].flatMap(([name, { bytes, dtype }]) => {
    const parts = TENSOR.exec(name)?.slice(1);
    if (!parts)
      throw new RunError("checkpoint.other", `${path} has a tensor '${name}', which no checkpoint has`, OTHER_VERSION);
    const [what, layer, linear, factor] = parts as [BlockName, string, Linear, Factor]; // or of a table
    if (what !== wanted) return [];
    const read = new Uint8Array(new ArrayBuffer(bytes));
    file.readInto(name, read);
    const values = dtype === "u8" ? read : new Float32Array(read.buffer);
    return [{ layer: Number(layer), linear, factor, values }];
  });
}

/** Of what a JSON object says, whatever its layout in the file. */
const sealOf = (written: object): string => new Bun.CryptoHasher("sha256").update(JSON.stringify(written)).digest("hex");

const CHUNK = 4 << 20;

function hashOf(path: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const buffer = new Uint8Array(new ArrayBuffer(CHUNK));
  const fd = openToRead(path);
  try {
    for (let got = readSync(fd, buffer); got > 0; got = readSync(fd, buffer)) hasher.update(buffer.subarray(0, got));
  } finally {
    closeSync(fd);
  }
  return hasher.digest("hex");
}

// Checkpoints: all of an adapter that a run needs to go on as if it had never stopped, in one folder a checkpoint.
//
//   <run>/checkpoints/<adapter>/step-000120/state.safetensors    parameters and both moments, f32, as they are without padding
//                                           /checkpoint.json      where it stands, and the hash of the other file
//
// Nothing in it depends on the device or on the number of stages. A folder appears under its name when it is whole.

import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readSync, renameSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import * as v from "valibot";
import { RunError, textOf } from "../base/errors.ts";
import type { Factor, Method } from "../base/kinds.ts";
import { type AdapterLayout, type FactorTensor, factorPlace, factorsIn, type LayerRange, takeFactor } from "../base/layout.ts";
import { type Placement, rankAt } from "../base/placement.ts";
import type { Linear, ModelSpec } from "../base/spec.ts";
import { removeQuietly, syncFolder, writeError, writeFileAtomic } from "./atomic.ts";
import { measured, readJsonObject } from "./json.ts";
import { openSafetensors, writeSafetensors } from "./safetensors.ts";

export const BLOCKS = ["params", "m", "v"] as const;
export type BlockName = (typeof BLOCKS)[number];
/** A stage's blocks of an adapter, laid out as base/layout.ts says. */
export type Blocks = Readonly<Record<BlockName, Float32Array>>;

const FORMAT = 1;
const STATE = "state.safetensors";
const PROGRESS = "checkpoint.json";
const evaluation = v.strictObject({ loss: measured, exact: v.number(), rows: v.number() });

/** What an adapter is made of: its settings, its data and its base model, as fingerprints. */
export const madeSchema = v.strictObject({ settings: v.string(), data: v.string(), model: v.string() });

const progressSchema = v.strictObject({
  format: v.literal(FORMAT),
  adapter: v.string(),
  /** Optimizer steps made. */
  step: v.pipe(v.number(), v.safeInteger(), v.minValue(0)),
  tokens: v.number(),
  seconds: v.number(),
  firstLoss: v.nullable(v.number()),
  lastLoss: v.nullable(v.number()),
  before: v.nullable(evaluation),
  /** Of early stopping (schedule/sweeps.ts). */
  best: v.nullable(v.strictObject({ loss: measured, step: v.number(), since: v.number(), judged: v.number() })),
  made: madeSchema,
  sha256: v.string(),
});
type Written = v.InferOutput<typeof progressSchema>;
/** Where an adapter stands. */
export type Progress = Omit<Written, "format" | "sha256">;

/** What a checkpoint is made from. */
export type Snapshot = {
  readonly spec: ModelSpec;
  readonly rank: number;
  readonly targets: readonly Linear[];
  readonly method?: Method | undefined;
  readonly places?: Placement | undefined;
  readonly stages: readonly { readonly part: LayerRange; readonly layout: AdapterLayout; readonly blocks: Blocks }[];
};

export type Checkpoint = {
  readonly folder: string;
  readonly progress: Progress;
  readonly factors: (what: BlockName) => FactorTensor[];
};

const nameOf = (step: number): string => `step-${`${step}`.padStart(9, "0")}`;
const tensorName = (what: BlockName, { layer, linear, factor }: Omit<FactorTensor, "values">): string =>
  `${what}.${layer}.${linear}.${factor}`;

/** Writes a checkpoint among those in `folder`, and lets go of all but the `keep` newest. Throws a RunError; then nothing is changed. */
export function writeCheckpoint(folder: string, progress: Progress, snapshot: Snapshot, keep: number): void {
  const { spec, targets, method, places, stages } = snapshot;
  const tensors = BLOCKS.flatMap((what) =>
    stages.flatMap(({ part, layout, blocks }) =>
      factorsIn(part, targets, method, places).map((at) => {
        const place = factorPlace(spec, layout, rankAt(snapshot, at.layer, at.linear), at.layer, at.linear, at.factor);
        const data = takeFactor(blocks[what], place);
        return { name: tensorName(what, at), dtype: "f32" as const, shape: [place.rows, place.columns], data };
      }),
    ),
  );
  const whole = join(folder, nameOf(progress.step));
  const part = `${whole}.part`;
  try {
    rmSync(part, { recursive: true, force: true });
    mkdirSync(part, { recursive: true });
    writeSafetensors(join(part, STATE), tensors);
    const written = { format: FORMAT, ...progress, sha256: hashOf(join(part, STATE)) };
    writeFileAtomic(join(part, PROGRESS), `${JSON.stringify({ ...written, seal: sealOf(written) }, null, 2)}\n`);
    rmSync(whole, { recursive: true, force: true });
    renameSync(part, whole);
    syncFolder(folder);
  } catch (error) {
    removeQuietly(part);
    throw error instanceof RunError ? error : writeError(whole, error);
  }
  for (const old of checkpointsIn(folder).slice(keep)) rmSync(old, { recursive: true, force: true });
}

/** Folders of checkpoints, the newest first. */
export const checkpointsIn = (folder: string): string[] =>
  existsSync(folder)
    ? readdirSync(folder)
        .filter((name) => /^step-\d+$/.test(name))
        .sort()
        .reverse()
        .map((name) => join(folder, name))
    : [];

/** Reads and checks a checkpoint. Throws a RunError, `checkpoint.bad`, where it is not what was written. */
export function readCheckpoint(folder: string): Checkpoint {
  try {
    const { seal, ...written } = readJsonObject(join(folder, PROGRESS), "checkpoint.json");
    if (seal !== sealOf(written)) throw new Error(`${PROGRESS} is not what was written`);
    const parsed = v.safeParse(progressSchema, written);
    if (!parsed.success) throw new Error(`${PROGRESS}: ${parsed.issues[0].message}`);
    const { format: _, sha256, ...progress } = parsed.output;
    if (basename(folder) !== nameOf(progress.step)) throw new Error(`it is of step ${progress.step}`);
    const path = join(folder, STATE);
    const found = hashOf(path);
    if (found !== sha256)
      throw new Error(`${STATE} has the SHA-256 ${found.slice(0, 16)}..., ${sha256.slice(0, 16)}... was written`);
    return { folder, progress, factors: (what) => factorsOf(path, what) };
  } catch (error) {
    throw new RunError("checkpoint.bad", `the checkpoint ${folder} is damaged: ${textOf(error)}`, undefined, { cause: error });
  }
}

function factorsOf(path: string, wanted: BlockName): FactorTensor[] {
  using file = openSafetensors(path);
  return [...file.tensors].flatMap(([name, { bytes }]) => {
    const [what, layer, linear, factor] = name.split(".") as [BlockName, string, Linear, Factor];
    if (what !== wanted) return [];
    const values = new Float32Array(new ArrayBuffer(bytes));
    file.readInto(name, new Uint8Array(values.buffer));
    return [{ layer: Number(layer), linear, factor, values }];
  });
}

/** Of what a JSON object says, whatever its layout in the file. */
const sealOf = (written: object): string => new Bun.CryptoHasher("sha256").update(JSON.stringify(written)).digest("hex");

const CHUNK = 4 << 20;

function hashOf(path: string): string {
  const hasher = new Bun.CryptoHasher("sha256");
  const buffer = new Uint8Array(new ArrayBuffer(CHUNK));
  const fd = openSync(path, "r");
  try {
    for (let got = readSync(fd, buffer); got > 0; got = readSync(fd, buffer)) hasher.update(buffer.subarray(0, got));
  } finally {
    closeSync(fd);
  }
  return hasher.digest("hex");
}

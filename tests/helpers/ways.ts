// Adapters of every method on one model: what each learns and what it says, among others, alone, in other slots, computed
// again or kept, and from its export; by tiles and by rows. All the same bits, on any device.

import { expect } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { WeightFormat } from "../../src/base/precision.ts";
import { Rng } from "../../src/base/rng.ts";
import { alignUp, range, sum } from "../../src/base/shape.ts";
import type { ModelSpec } from "../../src/base/spec.ts";
import type { SequenceLoss } from "../../src/bus/messages.ts";
import type { Device } from "../../src/device/device.ts";
import type { StageSizes } from "../../src/engine/buffers.ts";
import { keepsStates } from "../../src/engine/kv-cache.ts";
import { Stage } from "../../src/engine/stage.ts";
import type { FillTensor } from "../../src/engine/weights.ts";
import { sameBits } from "../../src/files/convert.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { exportPeft } from "../../src/files/peftexport.ts";
import type { PoolAdapter } from "../../src/methods/adapter.ts";
import { type FactorTensor, tensorsIn } from "../../src/methods/layout.ts";
import { alphaOf } from "../../src/methods/placement.ts";
import { settingsOf } from "../../src/methods/registry.ts";
import { PAGE } from "../../src/ops/decode.ts";
import { tileOf } from "../../src/plan/generation.ts";
import { clipCoefficient, gradNormOf } from "../../src/schedule/clip.ts";
import { decode, type GeneratedSequence, prefill, type Tile, tiledRows } from "../../src/schedule/decode.ts";
import type { GenerationBatch, MicroBatch } from "../../src/schedule/micro-batch.ts";
import { pack, type Tokens } from "../../src/schedule/pack.ts";
import { frozenOf } from "../../src/session/adapters.ts";
import { crowdTables, sharedAlike } from "./crowd.ts";
import { factorsOf, writeAdapter } from "./factors.ts";
import { factorsFor, nextLogits } from "./generation.ts";
import { adapterOn, inExperts, LINEARS, placedOn, randomFill, randomTokens, tinySizes, wholeModel } from "./tiny.ts";

/** What all of it is tried on. */
export type Ground = {
  readonly open: () => Device;
  readonly spec: ModelSpec;
  readonly format?: WeightFormat;
  /** The base model's weights; left out, random ones. */
  readonly fill?: (device: Device) => FillTensor;
  /** Tokens of the rows of an adapter in a pass: which adapter has which, changes from pass to pass. */
  readonly lengths: readonly (readonly number[])[];
  /** Tokens of its prompts. */
  readonly prompts: readonly number[];
};

/** Each method with narrow and wide ranks, some linears left out, tables, and experts where the model has some. */
export function adaptersOf(spec: ModelSpec): readonly PoolAdapter[] {
  const some = LINEARS.filter((_, i) => i % 3 !== 1);
  const tables = [0, 1].map((i) => ({ tables: crowdTables(i, spec)! }));
  const all: readonly PoolAdapter[] = [
    { rank: 3, scale: 1.1, targets: LINEARS },
    { rank: 64, scale: 0.05, targets: some },
    { rank: 12, scale: 1, targets: LINEARS, method: "vera", projectionSeed: 3, optimizer: "adamw-8bit" },
    { rank: 5, scale: 0.8, targets: LINEARS, method: "dora" },
    { rank: 16, scale: 0.5, targets: ["q_proj", "v_proj", "gate_proj", "down_proj"], ...tables[0] },
    { rank: 70, scale: 1, targets: some, method: "vera" },
    { rank: 33, scale: 0.2, targets: some, method: "dora", optimizer: "sgd" },
    { rank: 1, scale: 2, targets: ["k_proj", "o_proj"], ...tables[1] },
  ];
  const own = all.map((adapter) => (spec.latent ? placedOn(spec, adapter) : adapterOn(spec, adapter)));
  return [...own, ...(spec.experts ? inExperts(spec) : [])].filter(({ targets, tables }) => targets.length > 0 || tables);
}

/** Bits by what they are of, for a message that names the first that differ. */
export type Bits = ReadonlyMap<string, Float32Array>;

type Export = { readonly adapter: PoolAdapter; readonly factors: readonly FactorTensor[] };

/** A stage with adapters of these numbers in its slots. */
export class Trial implements Disposable {
  private constructor(
    readonly ground: Ground,
    readonly stage: Stage,
    /** The adapter in each slot. */
    readonly who: readonly number[],
    private readonly tile: Tile,
    private readonly capacity: number,
  ) {}

  /** One that trains and generates. */
  static async open(ground: Ground, who: readonly number[], changes: Partial<StageSizes> = {}): Promise<Trial> {
    const all = adaptersOf(ground.spec);
    const adapters = who.map((i) => all[i]!);
    return await Trial.#open(ground, who, adapters, changes);
  }

  /** One that generates by exports, of the adapters with these numbers. */
  static async ofExports(ground: Ground, exports: ReadonlyMap<number, Export>, who: readonly number[]): Promise<Trial> {
    const all = who.map((i) => exports.get(i)!);
    const generates = { inFlight: 0, gradients: [], recomputation: "full" } as const;
    const adapters = all.map(({ adapter }) => adapter);
    const trial = await Trial.#open(ground, who, adapters, generates);
    for (const [slot, { adapter, factors }] of all.entries()) {
      await trial.stage.admit(slot, { ...adapter, seed: 0, init: null });
      await writeAdapter(trial.stage, slot, factors);
    }
    return trial;
  }

  static async #open(
    ground: Ground,
    who: readonly number[],
    adapters: readonly PoolAdapter[],
    changes: Partial<StageSizes>,
  ): Promise<Trial> {
    const { spec, lengths, prompts, format = "dense" } = ground;
    const device = ground.open();
    const { rowTile } = device;
    const tile = { ...tileOf(device), isApart: device.hasFewRows };
    const capacity = alignUp(Math.max(...prompts) + 2, PAGE);
    const sequences = prompts.length * (who.length + 1) * (device.hasFewRows ? 2 : 1);
    const trained = sum(range(who.length).map((i) => alignUp(sum(lengths[i % lengths.length]!), rowTile)));
    const tiled = prompts.map((of) => alignUp(of, rowTile));
    const rows = Math.max(trained, (who.length + 1) * (sum(tiled) + rowTile), tiledRows(sequences, tile));
    const sizes = tinySizes(device, spec, adapters, {
      ...{ layers: spec.layers, rows, targets: rows, chunk: 2 * rowTile, format },
      ...{ positions: Math.max(capacity, ...lengths.flat()), cache: { sequences, capacity }, ...changes },
    });
    const config = { spec, layerRange: wholeModel(spec), sizes };
    const fill = ground.fill?.(device) ?? randomFill(device, 1);
    const stage = await Stage.open(device, config, fill, { previous: null, next: null });
    return new Trial(ground, stage, who, tile, capacity);
  }

  #slotOf(i: number): number {
    return i < 0 ? -1 : this.who.indexOf(i);
  }

  #adapter(i: number): PoolAdapter {
    return adaptersOf(this.ground.spec)[i]!;
  }

  /** Puts an adapter into its slot as it is before its first step. */
  async #begin(i: number): Promise<void> {
    const slot = this.#slotOf(i);
    await this.stage.admit(slot, { ...this.#adapter(i), seed: 1000 + i, init: "default" });
    const factors = factorsFor(this.ground.spec, this.#adapter(i), 50 + i);
    await writeAdapter(this.stage, slot, sharedAlike(factors, this.ground.spec, this.#adapter(i)));
  }

  #rowsOf(i: number, pass: number): Tokens[] {
    const { lengths, spec } = this.ground;
    const rng = new Rng(i, pass, 7);
    return lengths[(i + 3 * pass) % lengths.length]!.map((length) => randomTokens(rng, spec.vocab, length + 1));
  }

  /** Pass `pass` of these adapters, after those before it. */
  #pass(who: readonly number[], pass: number): MicroBatch {
    const before = (i: number) => sum(range(pass).map((of) => sum(this.#rowsOf(i, of).map(({ ids }) => ids.length - 1))));
    const segments = who.map((i) => ({
      ...{ adapter: this.#slotOf(i), samples: this.#rowsOf(i, pass), seed: 1000 + i, step: 3, weight: 1 / 64 },
      ...{ firstRow: before(i), dropout: i % 3 === 1 || pass === 2 ? 0 : 0.05 * (1 + (i % 4)) },
    }));
    return pack(segments, this.who.length, this.stage.device.rowTile);
  }

  /**
   * Trains these adapters together from their beginning: a mini-batch of two passes, a step, and an evaluation after it. The
   * bits of each by what they are of.
   */
  async learn(who: readonly number[]): Promise<ReadonlyMap<number, Bits>> {
    const { stage } = this;
    const found = new Map(who.map((i) => [i, new Map<string, Float32Array>()]));
    const slots = who.map((i) => this.#slotOf(i));
    const putLosses = (name: string, { sequences }: MicroBatch, losses: readonly SequenceLoss[]) => {
      for (const [at, { loss, correct, logProbs }] of losses.entries()) {
        const own = found.get(this.who[sequences[at]!.adapter]!)!;
        const rows = [...own.keys()].filter((key) => key.startsWith(`${name}, `)).length;
        own.set(`${name}, row ${rows}`, Float32Array.of(loss, correct, ...logProbs!));
      }
    };
    const putFactors = async (name: string, what: "grads" | "params") => {
      for (const i of who)
        for (const { layer, linear, factor, values } of factorsOf(
          stage,
          this.#slotOf(i),
          await stage.pool.read(this.#slotOf(i), what),
        ))
          found.get(i)!.set(`${name}, ${layer}.${linear}.${factor}`, values);
    };
    for (const i of who) await this.#begin(i);
    for (const pass of [0, 1]) {
      const batch = this.#pass(who, pass);
      await stage.forward(pass, batch);
      putLosses(`pass ${pass}`, batch, (await stage.backward(pass, true))!);
    }
    await putFactors("gradient", "grads");
    const squares = await stage.pool.gradSquares(slots);
    for (const [at, i] of who.entries()) found.get(i)!.set("squares of the gradient", squares[at]!);
    await stage.step(
      who.map((i, at) => {
        const coefficient = clipCoefficient(gradNormOf([squares[at]!]), 0.5);
        const rates = { adapter: slots[at]!, t: 1, learningRate: 0.01, ratio: 1 + (i % 2), weightDecay: 0.01, coefficient };
        return this.#adapter(i).optimizer === "sgd"
          ? { ...rates, momentum: 0.9, nesterov: false }
          : { ...rates, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
      }),
    );
    await putFactors("after a step", "params");
    const batch = this.#pass(who, 2);
    putLosses("evaluated", batch, (await stage.evaluate(batch, true))!);
    return found;
  }

  /**
   * Logits after the prompts of these adapters (-1: the base alone) and after one token more: prompts read whole and, where
   * the device has products over few rows, by tiles and by rows. `isApart`: each in passes of its own, else all together.
   */
  async say(who: readonly number[], isApart: boolean): Promise<ReadonlyMap<number, Bits>> {
    const found = new Map(who.map((i) => [i, new Map<string, Float32Array>()]));
    const { prompts, spec } = this.ground;
    const { hasFewRows } = this.stage.device;
    const all = (ways: readonly Way[]): Said[] => {
      const wanted = who.flatMap((i) => prompts.flatMap((length) => ways.map((way) => ({ i, length, way }))));
      const read = wanted.filter(({ length, way }) => way !== "by rows" || length < LONG);
      return read.map((of, at) => {
        const rng = new Rng(of.i + 1, of.length, 9);
        const ids = range(of.length).map(() => rng.below(spec.vocab));
        return { ...of, sequence: { adapter: this.#slotOf(of.i), ids, firstRow: at * this.capacity } };
      });
    };
    const put = (said: readonly Said[], what: string, logits: readonly Float32Array[]) => {
      for (const [at, { i, length, way }] of said.entries()) found.get(i)!.set(`${length} tokens ${way}${what}`, logits[at]!);
    };
    const apart = <T>(all: readonly T[]): readonly (readonly T[])[] => (isApart ? all.map((of) => [of]) : [all]);
    const next = async (said: readonly Said[]) => {
      for (const group of apart(said)) {
        const longer = group.map(({ sequence }) => ({ ...sequence, ids: [...sequence.ids, 1 + (sequence.ids[0]! % 7)] }));
        put(group, ", then one", await this.#logits(decode(longer, this.who.length, this.tile)));
      }
    };
    const whole = all(["whole"]);
    for (const length of prompts)
      for (const group of apart(whole.filter((of) => of.length === length))) {
        const sequences = group.map(({ sequence }) => sequence);
        put(group, "", await this.#logits(prefill(sequences, this.who.length, this.tile)));
      }
    await next(whole);
    if (!hasFewRows || keepsStates(spec)) return found;
    const read = all(["by tiles", "by rows"]);
    for (const group of apart(read)) {
      const sequences = group.map(({ way, length, sequence }): GeneratedSequence => {
        return { ...sequence, read: 0, until: length, isPrompt: true, isTiled: way === "by tiles" };
      });
      put(group, "", await this.#logits(decode(sequences, this.who.length, this.tile)));
    }
    await next(read);
    return found;
  }

  async #logits(pass: GenerationBatch): Promise<readonly Float32Array[]> {
    return await nextLogits({ run: async (of) => (await this.stage.decode(of))! }, pass);
  }

  /** An adapter as it is now, read from the folder that a run exports. */
  async exported(i: number): Promise<Export> {
    const { spec } = this.ground;
    const [slot, { rank, scale, targets, places, tables, method = "lora", ...adapter }] = [this.#slotOf(i), this.#adapter(i)];
    const folder = mkdtempSync(join(tmpdir(), "mlora-ways-"));
    try {
      const placed = { rank, scale, targets, ...(places ? { places } : {}), ...(tables ? { tables } : {}) };
      const own = {
        alpha: alphaOf(scale, rank, false),
        rslora: false,
        dropout: 0,
        method,
        settings: settingsOf(method, adapter),
      };
      const params = await this.stage.pool.read(slot, "params");
      const stages = [{ layerRange: wholeModel(spec), params }];
      exportPeft(folder, { name: `adapter ${i}`, spec, peft: { ...placed, ...own, baseModel: "base" }, stages });
      const saved = readPeftAdapter(folder, spec);
      const frozen = frozenOf(saved);
      const at = tensorsIn(spec, wholeModel(spec), frozen);
      return { adapter: frozen, factors: at.map((of) => ({ ...of, values: saved.tensor(of.layer, of.linear, of.factor) })) };
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }

  [Symbol.dispose](): void {
    this.stage[Symbol.dispose]();
  }
}

/** Tokens of a prompt that is never read by rows (plan/generation.ts, tiledPromptOf). */
const LONG = 64;
type Way = "whole" | "by tiles" | "by rows";
type Said = { readonly i: number; readonly length: number; readonly way: Way; readonly sequence: GeneratedSequence };

/** Where bits differ: of each what is first, and how many. Empty where they do not. */
export function differences(got: Bits, want: Bits): string[] {
  expect([...got.keys()]).toEqual([...want.keys()]);
  return [...want].flatMap(([name, values]) => {
    const own = got.get(name)!;
    expect(own.length).toBe(values.length);
    if (sameBits(own, values)) return [];
    let [first, count] = [-1, 0];
    for (let i = 0; i < values.length; i++)
      if (!Object.is(own[i], values[i])) {
        if (count++ === 0) first = i;
      }
    return [`${name}: ${count} of ${values.length}, the first at ${first}: ${own[first]}, not ${values[first]}`];
  });
}

/** Declares nothing; throws where an adapter's bits depend on others, on its slot, on what is kept, or on its export. */
export async function expectSameWays(ground: Ground): Promise<void> {
  const everyone = [...adaptersOf(ground.spec).keys()];
  const backwards = everyone.toReversed();
  const problems: string[] = [];
  const compare = (how: string, got: ReadonlyMap<number, Bits>, want: ReadonlyMap<number, Bits>) => {
    for (const [i, bits] of got)
      problems.push(
        ...differences(bits, want.get(i)!)
          .slice(0, 3)
          .map((of) => `adapter ${i} ${how}: ${of}`),
      );
  };
  using trial = await Trial.open(ground, everyone);
  const chunk = trial.stage.device.rowTile; // of targets: half of what it is there
  const learned = await trial.learn(everyone);
  for (const [i, bits] of learned) {
    const gradients = [...bits].filter(([name]) => /^gradient.*(A|B|M|lambda_[bd])$/.test(name)).map(([, values]) => values);
    expect(
      gradients.length > 0 && gradients.every((of) => of.some((value) => value !== 0)),
      `every gradient of adapter ${i}`,
    ).toBe(true);
  }
  const said = await trial.say([-1, ...everyone], false);
  const exports = new Map(await Promise.all(everyone.map(async (i) => [i, await trial.exported(i)] as const)));
  compare("apart", await trial.say([-1, ...everyone], true), said);
  {
    using frozen = await Trial.ofExports(ground, exports, backwards);
    compare("from its export, apart", await frozen.say([...backwards, -1], true), said);
    compare("from its export, among others", await frozen.say([...backwards, -1], false), said);
  }
  for (const i of everyone) compare("alone", await trial.learn([i]), learned);
  for (const recomputation of ["none", "full", "offload"] as const) {
    using other = await Trial.open(ground, backwards, {
      recomputation,
      hostInputs: 1,
      ...(recomputation === "full" ? { chunk } : {}),
    });
    const some = backwards.filter((_, at) => recomputation === "none" || at % 2 === (recomputation === "full" ? 0 : 1));
    compare(`in another slot, recomputation ${recomputation}`, await other.learn(some), learned);
  }
  expect(problems).toEqual([]);
}

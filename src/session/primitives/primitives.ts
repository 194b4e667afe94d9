// The primitives of training, for loops that a program writes itself: gradients of weighted tokens or of an objective,
// optimizer steps, samples of the weights as they are, adapters saved and loaded.
//
// The calls of an adapter are carried out in the order in which they are made, so that a sample never sees half of a step.
// Calls of different adapters do not wait for each other: rows that are there at one time are computed together, as in a run,
// and so are samples. What an adapter learns is a function of its own calls alone: the same rows give the same bits.
//
// There may be more adapters than slots. One whose client is slow is set aside, as it is, when another needs its memory, and
// comes back with its next call.

import { RequestError, RunError } from "../../base/errors.ts";
import { range } from "../../base/shape.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import type { SequenceLoss } from "../../bus/messages.ts";
import { lacking, lateAdapters } from "../../plan/late-adapters.ts";
import { type AdapterPlan, bytesOnStages, type DataSummary, type Plan } from "../../plan/plan.ts";
import type { AdapterRecipe, Optimizer } from "../../recipe/recipe.ts";
import { clipCoefficient, gradNormOf } from "../../schedule/clip.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";
import type { Row } from "../../schedule/pack.ts";
import type { GenerationEngine, NextToken } from "../decoding/decoding.ts";
import { engineOf, isFollowed } from "../decoding/generation-engine.ts";
import { PassTurns } from "../decoding/pass-turns.ts";
import { Sampler } from "../decoding/sampler.ts";
import { Shares } from "../decoding/shares.ts";
import { begin } from "../state/initialise.ts";
import { type AsideBlocks, admit, readParams, readState, release, setAside, writeState } from "../state/slot.ts";
import { SpanNames } from "../tracing/span-names.ts";
import { ruleOf } from "../training/optimizer-steps.ts";
import { hasEarlySquares, squaresOf } from "../training/shared-rows.ts";
import { type Losses, Packer } from "./batches.ts";
import {
  gatherSamples,
  type LossOptions,
  type PrimitivesOptions,
  type Sample,
  type SampledToken,
  type SampleOptions,
  type StepMade,
} from "./calls.ts";
import { largestData } from "./capacity.ts";
import { checkOptimizer, checkPrompts } from "./checks.ts";
import { AdapterFiles, loadFrom } from "./files.ts";
import { cutBaseRows, cutRows } from "./segments.ts";
import { type Resident, resident, Slots } from "./slots.ts";
import { type Squares, TrainingPasses } from "./training-passes.ts";
import { Turns } from "./turns.ts";

export * from "./calls.ts";

/** In place of a slot: the base model by itself. */
const BASE = -1;

/** An adapter between two calls. */
type Trained = Resident & {
  readonly plan: AdapterPlan;
  readonly turns: Turns;
  /** Optimizer steps made. */
  steps: number;
  /** Tokens whose gradients were added since the last of them. */
  tokens: number;
  /** The squares of the gradients that it has; null where the stages have to be asked for them. */
  squares: Promise<Squares> | null;
  /** Resolves when all stages have been heard of its last step. */
  made: Promise<unknown>;
  /** What it is while it has no slot; null before its first. */
  aside: readonly AsideBlocks[] | null;
};

/** What work comes to; fails with the step before it. A stage does a step before what it is sent later: none waits for it. */
async function afterStep<T>(made: Promise<unknown>, work: Promise<T>): Promise<T> {
  const [found] = await Promise.all([work, made]);
  return found;
}

export class Primitives implements AsyncDisposable {
  readonly #adapters = new Map<string, Trained>();
  readonly slots: Slots<Trained>;
  readonly names = new SpanNames();
  readonly #engine: GenerationEngine | null;
  readonly #sampler: Sampler | null;
  readonly #base = new Turns();
  readonly #packers: Readonly<Record<"train" | "evaluate", Packer>>;
  readonly #underway = new Set<Promise<unknown>>();
  readonly #files: AdapterFiles;
  /** Aborted, with its reason, when a stage is gone: every later call fails. Null where that is not known. */
  readonly lost: AbortSignal | null;

  private constructor(
    readonly bus: Bus,
    readonly plan: Plan,
    private readonly opened: AsyncDisposable,
    options: PrimitivesOptions,
  ) {
    this.lost = options.lost ?? null;
    const { stages, slots } = plan;
    this.#files = new AdapterFiles(plan);
    this.#engine = engineOf(bus, plan);
    const turns = new PassTurns();
    const passes = new TrainingPasses(bus);
    this.#sampler = this.#engine && new Sampler(this.#engine, turns, new Shares(options.weightOf));
    this.#packers = {
      train: new Packer(plan, turns, new Shares(options.weightOf), {
        run: (batch, _, ends) => passes.run(batch, ends),
        idle: () => passes.finish(),
      }),
      evaluate: new Packer(plan, turns, new Shares(options.weightOf), { run: (batch, top) => this.#evaluate(batch, top) }),
    };
    this.slots = new Slots<Trained>({
      ...options,
      slots,
      shares: new Shares(options.weightOf),
      bytes: stages.map((stage) => stage.sizes.blockBytes),
      fill: (of, slot) => this.#fill(of, slot),
      setAside: async (of, slot) => {
        of.aside = await setAside(bus, slot, of.plan.optimizer, of.tokens > 0);
      },
    });
  }

  /**
   * Adds the adapters of the plan, as they are before their first step; adapter `i` gets slot `i` of the opened stages while
   * there are slots. `stages` are disposed of with the primitives.
   */
  static async begin(
    bus: Bus,
    plan: Plan,
    stages: AsyncDisposable,
    { adapters = plan.adapters, ...options }: PrimitivesOptions & { readonly adapters?: readonly AdapterPlan[] } = {},
  ): Promise<Primitives> {
    await using opened = new AsyncDisposableStack();
    const primitives = opened.use(new Primitives(bus, plan, stages, options));
    for (const adapter of adapters) await primitives.#add(adapter);
    opened.move();
    return primitives;
  }

  get adapters(): readonly string[] {
    return [...this.#adapters.keys()];
  }

  has(name: string): boolean {
    return this.#adapters.has(name);
  }

  /** Optimizer steps that an adapter has made. */
  stepsOf(name: string): number {
    return this.#of(name).steps;
  }

  /** Whether an adapter has gradients that no step has used. */
  hasGradient(name: string): boolean {
    return this.#of(name).tokens > 0;
  }

  /**
   * Adds an adapter as it is before its first step; resolves when it has had a slot. `data` sums up the rows that it may be
   * given; left out, those of its recipe's limits. `owner`: by whose share its rows have their turn. Throws RequestErrors where
   * the name is taken, or the stages cannot have it.
   */
  async add(recipe: AdapterRecipe, given?: DataSummary, owner = ""): Promise<AdapterPlan> {
    const data = given ?? largestData(recipe, this.plan.spec.maxPositions);
    if (this.has(recipe.name))
      throw new RequestError("primitives.adapter", `there is an adapter '${recipe.name}' already`, "give it another name");
    const [adapter] = lateAdapters(this.plan, [recipe], [data]);
    const lack = lacking(this.plan, [adapter!], [data]);
    if (lack !== null) throw new RequestError("primitives.capacity", `adapter '${recipe.name}': the stages have no ${lack}`);
    await this.#add(adapter!, owner);
    return adapter!;
  }

  async #add(plan: AdapterPlan, owner = ""): Promise<void> {
    const bytes = bytesOnStages(this.plan, plan);
    const none = { steps: 0, tokens: 0, squares: null, made: Promise.resolve(), aside: null };
    const added: Trained = { ...resident(bytes, owner), plan, turns: new Turns(), ...none };
    this.#adapters.set(plan.name, added);
    try {
      await this.#change(added, () => Promise.resolve());
    } catch (error) {
      this.#adapters.delete(plan.name);
      throw error;
    }
  }

  /** Lets go of an adapter, after the calls before. */
  async remove(name: string): Promise<void> {
    const trained = this.#of(name);
    this.#adapters.delete(name);
    await this.#tracked(
      trained.turns.change(async () => {
        await this.slots.leave(trained, (slot) => release(this.bus, slot));
        trained.aside = null;
      }),
    );
  }

  /** Puts an adapter into a slot: as it was set aside, or as it is before its first step. */
  async #fill(of: Trained, slot: number): Promise<void> {
    this.names.hold(slot, of.plan.name);
    const at = { bus: this.bus, plan: this.plan, adapter: of.plan, slot };
    if (of.aside) {
      await admit(this.bus, slot, of.plan, null);
      await writeState(this.bus, slot, of.aside);
      of.aside = null;
    } else if (of.plan.recipe.initialAdapter === null) await begin(at, () => undefined);
    else of.steps = await loadFrom(at, of.plan.recipe.initialAdapter);
  }

  /**
   * Adds the gradient of the rows' loss to the adapter's. Rows either all have `weights`, of any sign, which multiply the
   * losses -log p of their targets; or none has, and the objective decides: with supervised fine-tuning each target counts
   * 1 / targets of this call. Rows are cut into micro-batches as a run's are. Throws a RequestError, `primitives.rows`,
   * before anything is computed.
   */
  forwardBackward(name: string, rows: readonly Row[], options: LossOptions = {}): Promise<Losses> {
    return this.#through(name, rows, options, true);
  }

  /** The same losses and log-probabilities without gradients and without dropout; null: of the base model by itself. */
  forward(name: string | null, rows: readonly Row[], options: LossOptions = {}): Promise<Losses> {
    if (name !== null) return this.#through(name, rows, options, false);
    const { microBatches, segmentOf } = cutBaseRows(this.plan, rows, options);
    const call = { slot: BASE, owner: "", rows, microBatches, top: options.top ?? 0 };
    const work = () => this.#packers.evaluate.add({ ...call, segmentOf: (of) => segmentOf(of, BASE) });
    return this.#tracked(this.#base.read(work));
  }

  /**
   * An optimizer step with the gradients since the last one, which are zero again then. `settings` replace those of the
   * adapter's recipe; the learning rate is taken as it is, without a schedule. Throws a RequestError, `primitives.step`,
   * where there is no gradient and `isZero` does not make that a zero, and a RunError, `primitives.numbers`, where its norm is
   * not finite: then nothing is changed, and `discard` drops the gradients. Resolves when the stages have been sent the step;
   * the adapter's next call fails where they fail at it.
   */
  async step(name: string, settings: Partial<Optimizer> = {}, isZero = false): Promise<StepMade> {
    const trained = this.#of(name);
    const { recipe } = trained.plan;
    const optimizer = checkOptimizer(name, recipe.optimizer, settings);
    return this.#change(trained, async (slot) => {
      if (trained.tokens === 0 && !isZero)
        throw new RequestError("primitives.step", `adapter '${name}' has no gradient`, "call forwardBackward before step");
      const gradNorm = gradNormOf(await squaresOf(this.bus, this.plan.spec, trained.plan, slot, trained.squares));
      if (!Number.isFinite(gradNorm))
        throw new RunError(
          "primitives.numbers",
          `adapter '${name}': the gradient norm is ${gradNorm}`,
          "discard the gradients, and lower the learning rate or the weights",
        );
      const step = {
        adapter: slot,
        t: trained.steps + 1,
        learningRate: optimizer.learningRate,
        ratio: recipe.loraPlusRatio,
        weightDecay: optimizer.weightDecay,
        coefficient: clipCoefficient(gradNorm, optimizer.maxGradNorm),
        ...ruleOf(optimizer),
      };
      trained.made = this.#tracked(requestAll(this.bus, { type: "step", steps: [step] }));
      Object.assign(trained, { tokens: 0, squares: null });
      return { gradNorm, step: ++trained.steps };
    });
  }

  /** Drops the gradients since the last step; parameters and moments stay, bit for bit. */
  async discard(name: string): Promise<void> {
    const trained = this.#of(name);
    return this.#change(trained, async (slot) => {
      const blocks = await readState(this.bus, slot, trained.plan.optimizer);
      await admit(this.bus, slot, trained.plan, null);
      await writeState(this.bus, slot, blocks);
      Object.assign(trained, { tokens: 0, squares: null });
    });
  }

  /**
   * `n` continuations of each prompt under an adapter, or under the base model alone (null), as it is after the calls before.
   * Throws a RequestError, `primitives.sample`, and what `signal` is aborted with.
   */
  async sample(name: string | null, prompts: readonly ArrayLike<number>[], options: SampleOptions): Promise<Sample[][]> {
    const { got, samples } = gatherSamples(prompts.length, options.n ?? 1);
    await this.stream(name, prompts, options, got);
    return samples();
  }

  /** The same with each token as it comes; resolves when all sequences have ended. */
  async stream(
    name: string | null,
    prompts: readonly ArrayLike<number>[],
    options: SampleOptions,
    got: (token: SampledToken) => void,
  ): Promise<void> {
    const trained = name === null ? null : this.#of(name);
    const [engine, sampler] = [this.#engine, this.#sampler];
    if (!engine || !sampler)
      throw new RequestError(
        "primitives.sample",
        "the stages have no cache",
        "open them with a cache: { sequences, capacity }",
      );
    const { maxTokens, stops = [], seed = 0, n = 1, signal, owner = trained?.owner ?? "", logits = false } = options;
    checkPrompts(this.plan, engine, prompts, { ...options, stops: [...stops], seed, n });
    const choosing = { sampling: { temperature: 0, topK: 0, topP: 1, ...options.sampling }, stops: new Set(stops), logits };
    const work = (adapter: number) =>
      sampler.run(
        prompts.flatMap((of, prompt) =>
          range(n).map((sample) => ({
            ...{ adapter, owner, prompt: Array.from(of), limit: maxTokens, seed: seed + sample, ...choosing },
            isFollowed: trained === null || isFollowed(trained.plan),
            got: (next: NextToken) => got({ prompt, sample, ...next }),
          })),
        ),
        signal,
      );
    return trained ? this.#read(trained, work) : this.#tracked(this.#base.read(() => work(BASE)));
  }

  /** Writes the adapter as PEFT would, and reads it back: its weights, without moments. `folder` is made. */
  async save(name: string, folder: string): Promise<void> {
    const { plan } = this.#of(name);
    const read = this.#read(this.#of(name), (slot) => readParams({ bus: this.bus, slot }));
    return this.#tracked(read.then((blocks) => this.#files.export(folder, plan, blocks)));
  }

  /**
   * Writes all that training resumes from, moments and steps included; gradients are not. One that was in `folder` goes when
   * this one is whole. Calls that follow do not wait until it is written: what loads it must.
   */
  async saveState(name: string, folder: string): Promise<void> {
    const trained = this.#of(name);
    const { plan } = trained;
    const read = async (slot: number) => [trained.steps, await readState(this.bus, slot, plan.optimizer)] as const;
    return this.#tracked(this.#read(trained, read).then(([step, blocks]) => this.#files.saveState(folder, plan, step, blocks)));
  }

  /**
   * Makes the adapter what `folder` holds: of `saveState`, to resume bit for bit; of `save` or of PEFT, its weights, as
   * before its first step. Gradients are dropped. Throws a RequestError, `primitives.load`, where it is another kind of
   * adapter; then nothing is changed.
   */
  async load(name: string, folder: string): Promise<{ readonly steps: number }> {
    const trained = this.#of(name);
    return this.#change(trained, async (slot) => {
      const steps = await loadFrom({ bus: this.bus, plan: this.plan, adapter: trained.plan, slot }, folder);
      Object.assign(trained, { steps, tokens: 0, squares: null });
      return { steps };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.allSettled(this.#underway);
    await this.#files[Symbol.asyncDispose]();
    this.slots[Symbol.dispose]();
    await this.opened[Symbol.asyncDispose]();
  }

  #of(name: string): Trained {
    const found = this.#adapters.get(name);
    if (found) return found;
    throw new RequestError("primitives.adapter", `there is no adapter '${name}'`, `name one of ${this.adapters.join(", ")}`);
  }

  /** Work in the adapter's slot, after the calls before: alone, or next to others that only read. */
  #change<T>(of: Trained, work: (slot: number) => Promise<T>): Promise<T> {
    return this.#tracked(of.turns.change(() => this.slots.use(of, (slot) => afterStep(of.made, work(slot)))));
  }

  #read<T>(of: Trained, work: (slot: number) => Promise<T>): Promise<T> {
    return this.#tracked(of.turns.read(() => this.slots.use(of, (slot) => afterStep(of.made, work(slot)))));
  }

  #tracked<T>(done: Promise<T>): Promise<T> {
    this.#underway.add(done);
    done.catch(() => undefined).finally(() => this.#underway.delete(done)); // the caller handles its failure
    return done;
  }

  async #through(name: string, rows: readonly Row[], options: LossOptions, isTraining: boolean): Promise<Losses> {
    const trained = this.#of(name);
    const { microBatches, segmentOf } = cutRows(this.plan, trained, rows, options, isTraining);
    const packer = this.#packers[isTraining ? "train" : "evaluate"];
    const call = { owner: trained.owner, rows, microBatches, top: options.top ?? 0 };
    const isAsked = isTraining && hasEarlySquares(this.plan.spec, trained.plan);
    const ended = (squares: Promise<Squares>) => {
      trained.squares = squares;
    };
    const work = (slot: number) => {
      if (isTraining) trained.squares = null; // of gradients that these are added to
      return packer.add({ ...call, slot, segmentOf: (of) => segmentOf(of, slot), ...(isAsked ? { ended } : {}) });
    };
    return isTraining ? this.#change(trained, work) : this.#read(trained, work);
  }

  async #evaluate(batch: MicroBatch, top: number): Promise<readonly SequenceLoss[]> {
    return (await requestAll(this.bus, { type: "evaluate", batch, logProbs: true, ...(top > 0 && { top }) })).at(-1)!;
  }
}

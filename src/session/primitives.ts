// The primitives of training, for loops that a program writes itself: gradients of weighted tokens or of an objective,
// optimizer steps, samples of the weights as they are, adapters saved and loaded.
//
// Calls are carried out in the order in which they are made, one at a time, so that a sample never sees half of a step. Only
// rows of different adapters whose calls follow each other, without a wait between them, are computed together, as in a run.
// What an adapter learns is a function of its own calls alone: the same rows give the same bits.

import { RequestError, RunError } from "../base/errors.ts";
import { range, sum } from "../base/shape.ts";
import { shortPositions } from "../base/spec.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import { logProb, type Sampling } from "../data/sample.ts";
import { isPreference, type Objective } from "../objectives/registry.ts";
import { tileOf } from "../plan/generation.ts";
import type { AdapterPlan, Plan } from "../plan/plan.ts";
import type { Optimizer } from "../recipe/recipe.ts";
import { clipCoefficient, gradNormOf } from "../schedule/clip.ts";
import type { MicroBatch } from "../schedule/micro-batch.ts";
import { inputLength, type Row, type Segment } from "../schedule/pack.ts";
import { cut } from "../schedule/steps.ts";
import { totalsOf } from "./batches.ts";
import { exportKept } from "./export.ts";
import { engineOver, type GenerationEngine, generate } from "./generate.ts";
import { begin } from "./initialise.ts";
import { ruleOf } from "./optimizer-steps.ts";
import { type Losses, type RowsCall, runCalls } from "./primitive-batches.ts";
import { checkFits, checkOptimizer, checkPrompts, checkRows } from "./primitive-checks.ts";
import { loadFrom, saveState } from "./primitive-files.ts";
import { needsSum, sumShared } from "./shared-rows.ts";
import { admit, readState, writeState } from "./slot.ts";

/** How the loss of rows is made. */
export type LossOptions = {
  /** Left out, the adapter's own. */
  readonly objective?: Objective;
  /** Of each row, the log-probabilities of its two sequences under the reference of an objective that has one. */
  readonly references?: readonly (readonly [own: number, other: number])[];
};

export type SampleOptions = {
  /** Left out, the likeliest token. */
  readonly sampling?: Partial<Sampling>;
  readonly maxTokens: number;
  /** Tokens that end a sample; they are part of it. */
  readonly stops?: Iterable<number>;
  /** Sample `i` of a prompt is that of `mlora generate --seed` with `seed + i`. */
  readonly seed?: number;
  readonly n?: number;
};
/** `logProbs` f32 are those of the model, whatever the temperature. */
export type Sample = { readonly ids: readonly number[]; readonly logProbs: Float32Array; readonly end: "stop" | "length" };

/** An adapter between two calls. */
type Trained = {
  readonly plan: AdapterPlan;
  readonly slot: number;
  /** Optimizer steps made. */
  steps: number;
  /** Tokens whose gradients were added since the last of them. */
  tokens: number;
};

export class Primitives implements AsyncDisposable {
  readonly #adapters: ReadonlyMap<string, Trained>;
  readonly #engine: GenerationEngine | null;
  #last: Promise<unknown> = Promise.resolve();
  /** The last calls, where they wait for their turn and others may join them. */
  #open: {
    readonly isTraining: boolean;
    readonly calls: Map<number, RowsCall>;
    readonly done: Promise<Losses[]>;
  } | null = null;
  #passes = 0;

  private constructor(
    readonly bus: Bus,
    readonly plan: Plan,
    private readonly opened: AsyncDisposable,
  ) {
    const { adapters, stages, device } = plan;
    this.#adapters = new Map(adapters.map((of, slot) => [of.name, { plan: of, slot, steps: 0, tokens: 0 }]));
    const { sizes } = stages[0]!;
    const { cache } = sizes;
    const generating = { tile: tileOf(device), shortPositions: shortPositions(plan.spec) };
    this.#engine = cache ? engineOver(bus, { ...generating, sizes: { ...sizes, cache } }) : null;
  }

  /**
   * Gives slot `i` of opened stages to adapter `i` of the plan, as it is before its first step. `stages` are
   * disposed of with the primitives.
   */
  static async begin(bus: Bus, plan: Plan, stages: AsyncDisposable): Promise<Primitives> {
    await using opened = new AsyncDisposableStack();
    const primitives = opened.use(new Primitives(bus, plan, stages));
    for (const [slot, adapter] of plan.adapters.entries()) {
      const { initialAdapter } = adapter.recipe;
      if (initialAdapter === null) await begin({ bus, plan, adapter, slot }, () => undefined);
      else await primitives.load(adapter.name, initialAdapter);
    }
    opened.move();
    return primitives;
  }

  get adapters(): readonly string[] {
    return [...this.#adapters.keys()];
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

  /** The same losses and log-probabilities without gradients and without dropout. */
  forward(name: string, rows: readonly Row[], options: LossOptions = {}): Promise<Losses> {
    return this.#through(name, rows, options, false);
  }

  /**
   * An optimizer step with the gradients since the last one, which are zero again then. `settings` replace those of the
   * adapter's recipe; the learning rate is taken as it is, without a schedule. Throws a RequestError, `primitives.step`,
   * where there is no gradient, and a RunError, `primitives.numbers`, where its norm is not finite: then nothing is changed,
   * and `discard` drops the gradients.
   */
  async step(name: string, settings: Partial<Optimizer> = {}): Promise<{ readonly gradNorm: number; readonly step: number }> {
    const trained = this.#of(name);
    const { recipe } = trained.plan;
    const optimizer = checkOptimizer(name, recipe.optimizer, settings);
    return this.#inOrder(async () => {
      if (trained.tokens === 0)
        throw new RequestError("primitives.step", `adapter '${name}' has no gradient`, "call forwardBackward before step");
      const { slot } = trained;
      const all = await requestAll(this.bus, { type: "squares", adapters: [slot] });
      const own = all.map(([of]) => of!);
      const isShared = needsSum(this.bus, this.plan.spec, trained.plan);
      const gradNorm = gradNormOf(isShared ? await sumShared(this.bus, slot, own) : own);
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
      await requestAll(this.bus, { type: "step", steps: [step] });
      trained.steps++;
      trained.tokens = 0;
      return { gradNorm, step: trained.steps };
    });
  }

  /** Drops the gradients since the last step; parameters and moments stay, bit for bit. */
  async discard(name: string): Promise<void> {
    const trained = this.#of(name);
    return this.#inOrder(async () => {
      const blocks = await readState(this.bus, trained.slot, trained.plan.optimizer);
      await admit(this.bus, trained.slot, trained.plan, null);
      await writeState(this.bus, trained.slot, blocks);
      trained.tokens = 0;
    });
  }

  /**
   * `n` continuations of each prompt under an adapter, or under the base model alone (null), as it is after the calls before.
   * Throws a RequestError, `primitives.sample`.
   */
  async sample(name: string | null, prompts: readonly ArrayLike<number>[], options: SampleOptions): Promise<Sample[][]> {
    const adapter = name === null ? -1 : this.#of(name).slot;
    const engine = this.#engine;
    if (!engine)
      throw new RequestError(
        "primitives.sample",
        "the stages have no cache",
        "open them with a cache: { sequences, capacity }",
      );
    const { maxTokens, stops = [], seed = 0, n = 1, sampling = {} } = options;
    checkPrompts(this.plan, engine, prompts, { ...options, stops: [...stops], seed, n });
    const wanted = prompts.flatMap((prompt) =>
      range(n).map((i) => ({ adapter, prompt: Array.from(prompt), limit: maxTokens, seed: seed + i })),
    );
    const chosen = { temperature: 0, topK: 0, topP: 1, ...sampling };
    return this.#inOrder(async () => {
      const found = wanted.map(() => ({ ids: [] as number[], logProbs: [] as number[], end: "length" as Sample["end"] }));
      for await (const { index, token, end, logits } of generate(engine, wanted, chosen, new Set(stops))) {
        const sample = found[index]!;
        sample.ids.push(token);
        sample.logProbs.push(logProb(logits, token));
        if (end !== null) sample.end = end;
      }
      const samples = found.map((of): Sample => ({ ...of, logProbs: Float32Array.from(of.logProbs) }));
      return prompts.map((_, i) => samples.slice(i * n, (i + 1) * n));
    });
  }

  /** Writes the adapter as PEFT would, and reads it back: its weights, without moments. `folder` is made. */
  async save(name: string, folder: string): Promise<void> {
    const { plan, slot } = this.#of(name);
    return this.#inOrder(async () => exportKept(this.plan, plan, await readState(this.bus, slot, plan.optimizer), folder));
  }

  /**
   * Writes all that training resumes from, moments and steps included; gradients are not. One that was in
   * `folder` goes when this one is whole.
   */
  async saveState(name: string, folder: string): Promise<void> {
    const trained = this.#of(name);
    const { plan, slot } = trained;
    return this.#inOrder(async () => {
      saveState(folder, this.plan, plan, trained.steps, await readState(this.bus, slot, plan.optimizer));
    });
  }

  /**
   * Makes the adapter what `folder` holds: of `saveState`, to resume bit for bit; of `save` or of PEFT, its weights, as
   * before its first step. Gradients are dropped. Throws a RequestError, `primitives.load`, where it is another kind of
   * adapter; then nothing is changed.
   */
  async load(name: string, folder: string): Promise<{ readonly steps: number }> {
    const trained = this.#of(name);
    return this.#inOrder(async () => {
      const { bus, plan } = this;
      trained.steps = await loadFrom({ bus, plan, adapter: trained.plan, slot: trained.slot }, folder);
      trained.tokens = 0;
      return { steps: trained.steps };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#last.catch(() => undefined);
    await this.opened[Symbol.asyncDispose]();
  }

  #of(name: string): Trained {
    const found = this.#adapters.get(name);
    if (found) return found;
    throw new RequestError("primitives.adapter", `there is no adapter '${name}'`, `name one of ${this.adapters.join(", ")}`);
  }

  #inOrder<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.catch(() => undefined).then(work);
    done.catch(() => undefined); // the caller handles it
    this.#last = done;
    this.#open = null;
    return done;
  }

  async #through(name: string, rows: readonly Row[], options: LossOptions, isTraining: boolean): Promise<Losses> {
    const trained = this.#of(name);
    const { recipe } = trained.plan;
    const { objective = recipe.objective, references } = options;
    checkRows(name, this.plan.spec.vocab, rows, objective, references);
    const microBatches = cut([...rows.keys()], rows.map(inputLength), recipe.batchSize, this.plan.tokensPerMicrobatch);
    checkFits(name, this.plan, rows, microBatches, objective);
    const totals = totalsOf(rows, objective);
    const segmentOf = (of: readonly number[]): Segment => {
      const samples = of.map((row) => rows[row]!);
      const preference = { totals, references: references ? of.map((row) => references[row]!) : null };
      const segment = {
        adapter: trained.slot,
        samples,
        seed: recipe.seed,
        step: trained.steps,
        dropout: isTraining ? recipe.dropout : 0,
        firstRow: trained.tokens,
        weight: rows[0]!.weights ? 1 : 1 / totals.tokens,
        ...(isPreference(objective) ? { preference: { objective, ...preference } } : {}),
      };
      if (isTraining) trained.tokens += sum(samples.map(inputLength));
      return segment;
    };
    return this.#together({ rows, microBatches, segmentOf }, trained, isTraining);
  }

  /** Runs a call after those before it; calls of other adapters of the same kind that follow at once run together with it. */
  #together(call: RowsCall, { slot }: Trained, isTraining: boolean): Promise<Losses> {
    if (!this.#open || this.#open.isTraining !== isTraining || this.#open.calls.has(slot)) {
      const calls = new Map<number, RowsCall>();
      const done = this.#inOrder(() => {
        if (this.#open?.calls === calls) this.#open = null; // from here on it is under way
        const run = (batch: MicroBatch) => (isTraining ? this.#train(batch) : this.#evaluate(batch));
        return runCalls([...calls.values()], this.plan, run);
      });
      this.#open = { isTraining, calls, done };
    }
    const { calls, done } = this.#open;
    const index = calls.size;
    calls.set(slot, call);
    return done.then((losses) => losses[index]!);
  }

  /** A packed batch through all stages and back; the requests of both ways are sent in one go. */
  async #train(batch: MicroBatch): Promise<readonly SequenceLoss[]> {
    const pass = this.#passes++;
    const forwards = requestAll(this.bus, { type: "forward", pass, batch });
    const backwards = requestAll(this.bus, { type: "backward", pass, logProbs: true });
    const [losses] = await Promise.all([backwards, forwards]);
    return losses.at(-1)!;
  }

  async #evaluate(batch: MicroBatch): Promise<readonly SequenceLoss[]> {
    return (await requestAll(this.bus, { type: "evaluate", batch, logProbs: true })).at(-1)!;
  }
}

/** A row of a prompt and what follows it, whose tokens are the targets, with a weight for all or for each. */
export function rowOf(prompt: ArrayLike<number>, completion: ArrayLike<number>, weights?: number | ArrayLike<number>): Row {
  const ids = Int32Array.from([...Array.from(prompt), ...Array.from(completion)]);
  const mask = new Uint8Array(ids.length).fill(1, prompt.length);
  if (weights === undefined) return { ids, mask };
  if (typeof weights === "number") return { ids, mask, weights: new Float32Array(ids.length).fill(weights, prompt.length) };
  const all = new Float32Array(prompt.length + weights.length);
  all.set(weights, prompt.length);
  return { ids, mask, weights: all };
}

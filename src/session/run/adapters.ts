// The adapters of a run as they change: those of its recipe, added ones, copies, and which of them are paused. What changes
// is kept in the run's folder, so that it survives new stages and a new process.

import { RequestError, textOf } from "../../base/errors.ts";
import { memory } from "../../base/machine.ts";
import { counted } from "../../base/units.ts";
import { type AdapterStatus, starting } from "../../bus/control.ts";
import type { ReadProgress } from "../../data/reading.ts";
import { lacking, lateAdapters } from "../../plan/late-adapters.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { type Controls, ending, type FoundToken, type LatestRows } from "../control/controls.ts";
import { checkReadable } from "../control/granted.ts";
import { checkAdded, type ForkRequest, forkRequest } from "../control/late-requests.ts";
import { planOn, type Request, readRequest, summariesOf, withLocalModel } from "../preparation/prepare.ts";
import { settingNotices } from "../preparation/setting-notices.ts";
import { checkRewards } from "../rollouts/rewards.ts";
import { removeStored } from "../state/checkpoints.ts";
import type { Training } from "../training/training.ts";
import { readAdded, readPaused, writeAdded, writePaused } from "./folder.ts";

/**
 * Limits for reading the data of an addition: the run may not have touched all its own memory yet, and other additions wait.
 */
const [ADD_SHARE, ADD_MS] = [0.5, 3_600_000];

const ENDED = /^(done|early|dropped|stopped|failed)$/;

export type AddOptions = {
  /** Aborted: the addition is dropped, with the signal's reason, unless its adapters have joined. */
  readonly signal?: AbortSignal;
  readonly progress?: (progress: ReadProgress) => void;
  /** The recipe came from another process: files that only root's privileges open are refused. */
  readonly isForeign?: boolean;
};

export type RunAdaptersOptions = {
  readonly stop: AbortSignal;
  /** The stages cannot be opened again: some were started elsewhere. */
  readonly isFixed: boolean;
  readonly notice: (text: string) => void;
  /** Resolves when all rows of the request are read, which an addition waits for; left out: they are. */
  readonly whole?: Promise<unknown>;
};

type Attended = { readonly training: Training; readonly plan: Plan };

export class RunAdapters {
  #request: Request;
  #attended: Attended | null = null;
  #suspend = new AbortController();
  /** Aborted when additions that are being read can no longer join. */
  #joinable = new AbortController();
  /** Names that stay paused when the stages, or the run, are opened again. */
  #paused: readonly string[];
  #added: readonly AdapterRecipe[];
  /** Copies that are yet to be made, by name: until then they are not part of the request. */
  readonly #copies = new Map<string, { readonly of: string; readonly after: number; readonly request: Request }>();
  /** One addition is read at a time: there is memory for one. */
  #turn: Promise<unknown>;
  #isWhole: boolean;

  constructor(
    request: Request,
    private readonly options: RunAdaptersOptions,
  ) {
    this.#request = request;
    this.#isWhole = options.whole === undefined;
    this.#turn = Promise.resolve(options.whole).catch(() => undefined);
    this.#added = readAdded(this.#output);
    this.#paused = readPaused(this.#output);
    options.stop.addEventListener("abort", () => this.#joinable.abort(ending()));
  }

  get #output(): string {
    return this.#request.recipe.run.output;
  }

  /** What the run trains by now: its recipe and data with all that was added. */
  get request(): Request {
    return this.#request;
  }

  get paused(): readonly string[] {
    return this.#paused;
  }

  /** The adapters with their progress; empty while no stages are open. */
  get statuses(): AdapterStatus[] {
    return this.#attended?.training.controls.adapters ?? [];
  }

  /** Rows of the micro-batch of an adapter that has begun last; null where there is none, or no stages are open. */
  latestRows(name: string): LatestRows | null {
    return this.#attended?.training.controls.latestRows(name) ?? null;
  }

  /** Adapters that can be asked for a token now. */
  get answering(): readonly string[] {
    return this.#attended?.training.controls.answering ?? [];
  }

  /** The likeliest token after these by an adapter as it is now. Throws RequestErrors. */
  async nextToken(name: string, ids: readonly number[]): Promise<FoundToken> {
    return await this.#attend().training.controls.nextToken(name, ids);
  }

  /** Tokens that are still to be trained. */
  get tokensLeft(): number {
    return this.#attended?.training.controls.tokensLeft ?? 0;
  }

  /** Stages are open. */
  get isOpen(): boolean {
    return this.#attended !== null;
  }

  /** A signal for the next training, aborted when its stages are to be opened again with capacity for more adapters. */
  renewSuspend(): AbortSignal {
    this.#suspend = new AbortController();
    return this.#suspend.signal;
  }

  /** All rows are read: the run has them from now on, and the training under way where it began with the same. */
  takeRows(data: Request["data"], isSame: boolean): void {
    this.#request = { ...this.#request, data };
    this.#isWhole = true;
    if (isSame && this.#attended) this.#attended.training.controls.takeRows(this.#attended.plan, data);
  }

  /** Has the stages opened again, by another plan. */
  reopen(): void {
    this.#suspend.abort();
  }

  /** Until it is disposed, requests go to this training. */
  attend(training: Training, plan: Plan): Disposable {
    this.#attended = { training, plan };
    this.#joinable = new AbortController();
    for (const { name, state } of training.controls.adapters)
      if (this.#paused.includes(name) && !ENDED.test(state)) training.controls.pause(name);
    for (const [name, { of, after, request }] of this.#copies)
      try {
        training.controls.fork(of, copyOn(plan, request), after);
      } catch (error) {
        this.options.notice(`the copy ${name} of ${of} was not made: ${textOf(error)}`);
        this.#copies.delete(name);
      }
    return {
      [Symbol.dispose]: () => {
        this.#savePaused(training);
        this.#attended = null;
        this.#joinable.abort(starting());
      },
    };
  }

  /** An adapter has joined the training: from now on the run continues with it after anything. */
  joined({ name, recipe }: AdapterPlan): void {
    this.#saveAdded([recipe]);
    const copy = this.#copies.get(name);
    if (copy) this.#request = this.#with(copy.request);
    this.#copies.delete(name);
  }

  /** Stops, pauses or resumes adapters; returns what `change` returns. */
  change(change: (controls: Controls) => string): string {
    const { training } = this.#attend();
    const sentence = change(training.controls);
    this.#savePaused(training);
    return sentence;
  }

  /**
   * Checks the recipe's adapters as those of a run, reads their data, and has them join; where the stages lack capacity,
   * these are opened again. Notices about the recipe and its data are the run's, and stand in lines after the sentence
   * that is returned. Throws RequestErrors: faults outside the data at once, the rest when it has been read.
   */
  async add(asked: Recipe, options: AddOptions = {}): Promise<string> {
    const recipe = await withLocalModel(asked, options, this.options.notice);
    this.#checkAdded(recipe, options);
    const { signal = null } = options;
    const both = AbortSignal.any([this.#joinable.signal, ...(signal ? [signal] : [])]);
    const outcome = this.#turn.then(() => this.#add(recipe, { ...options, signal: both }));
    this.#turn = outcome.catch(() => undefined);
    return await outcome;
  }

  async #add(recipe: Recipe, options: AddOptions & { readonly signal: AbortSignal }): Promise<string> {
    const { signal, progress } = options;
    signal.throwIfAborted();
    const most = Math.floor(ADD_SHARE * memory().availableBytes);
    const limits = { threads: 1, allMs: ADD_MS, mostBytes: most, mostGrowth: most }; // the cores are the training's
    const reading = { signal, ...(progress ? { progress } : {}), ...limits };
    const { adapters } = recipe;
    const late = await readRequest({ ...this.#request.recipe, adapters }, this.#request.spec, reading);
    signal.throwIfAborted();
    const { training, plan } = this.#checkAdded(recipe, options); // again: others may have joined meanwhile
    const summaries = summariesOf(late.data);
    const planned = lateAdapters(plan, late.recipe.adapters, summaries);
    const known = new Set(this.#request.notices);
    const request = this.#with(late);
    const devices = plan.stages.map(({ device }) => device);
    const needed = planOn(request, devices);
    const lack = lacking(plan, planned, summaries);
    if (lack !== null && this.options.isFixed)
      throw new RequestError("control.room", `the stages have no ${lack}`, "start a run of its own for them");
    training.controls.checkOpen(); // before it is written down
    for (const { name } of adapters) removeStored(this.#output, name); // of earlier adapters of these names
    this.#saveAdded(adapters);
    this.#request = request;
    const takes = ({ slots, stages }: Plan) => [slots, ...stages.map(({ sizes }) => sizes.blockBytes + sizes.hostBytes)];
    const isMore = takes(needed).some((is, i) => is > takes(plan)[i]!);
    const room =
      needed.slots > plan.slots
        ? `${counted(needed.slots, "slot")} instead of ${plan.slots}`
        : "memory for more adapters at once";
    const more = isMore && !training.controls.hasRoomFor(planned) ? room : null;
    const told = [...late.notices, ...settingNotices(planned)].filter((text) => !known.has(text));
    for (const text of told) this.options.notice(text);
    const joins = lack === null && (more === null || this.options.isFixed);
    if (!joins) this.#suspend.abort();
    const names = adapters.map(({ name }) => name).join(", ");
    const sentence = joins
      ? training.controls.add(planned, late.data)
      : `${names}: added; the stages are opened again, with ${lack ?? more}`;
    return withNotices(sentence, told);
  }

  /** A copy continues next to the adapter under another name. */
  fork(asked: ForkRequest): string {
    const { training, plan } = this.#attend(true);
    if (!this.#isWhole)
      throw new RequestError("control.reading", "the run's rows are still being read", "ask again when training is saved");
    const { adapter, name } = asked;
    const from = this.#request.recipe.adapters.findIndex((of) => of.name === adapter);
    if (from < 0) return training.controls.fork(adapter, plan.adapters[0]!); // throws that there is none
    const request = forkRequest(this.#request, from, asked, training.controls.names);
    const copy = copyOn(plan, request);
    const after = training.controls.stepOf(adapter);
    this.#copies.set(name, { of: adapter, after, request }); // first, as it may be made at once
    try {
      const sentence = training.controls.fork(adapter, copy, after);
      const told = settingNotices([copy]);
      for (const text of told) this.options.notice(text);
      return withNotices(sentence, told);
    } catch (error) {
      this.#copies.delete(name);
      throw error;
    }
  }

  /** `joins`: for an adapter that joins, which stages that are about to close cannot take. */
  #attend(joins = false): Attended {
    if (joins && this.options.stop.aborted) throw ending();
    if (!this.#attended || (joins && this.#suspend.signal.aborted)) throw starting();
    return this.#attended;
  }

  #checkAdded(recipe: Recipe, { isForeign = false }: AddOptions): Attended {
    const attended = this.#attend(true);
    checkRewards(recipe);
    checkAdded(recipe, this.#request, attended.plan, attended.training.controls.names);
    if (isForeign) checkReadable(recipe.adapters);
    return attended;
  }

  #with({ recipe: { adapters }, data, notices }: Request): Request {
    const { recipe, data: before, ...model } = this.#request;
    return {
      ...model,
      recipe: { ...recipe, adapters: [...recipe.adapters, ...adapters] },
      data: [...before, ...data],
      notices: [...new Set([...model.notices, ...notices])],
    };
  }

  #saveAdded(adapters: readonly AdapterRecipe[]): void {
    const known = new Set(this.#added.map(({ name }) => name));
    const added = [...this.#added, ...adapters.filter(({ name }) => !known.has(name))];
    if (added.length === known.size) return;
    writeAdded(this.#request.recipe, added);
    this.#added = added;
  }

  #savePaused({ controls }: Training): void {
    const { paused } = controls;
    if (`${paused}` === `${this.#paused}`) return;
    this.#paused = paused;
    writePaused(this.#output, paused);
  }
}

/** An answer to a request, with what its caller has to know besides. */
const withNotices = (sentence: string, notices: readonly string[]): string =>
  [sentence, ...notices.map((text) => `notice: ${text}`)].join("\n");

/** A copy as an adapter of this plan. */
const copyOn = (plan: Plan, { recipe: { adapters }, data }: Request): AdapterPlan =>
  lateAdapters(plan, adapters, summariesOf(data))[0]!;

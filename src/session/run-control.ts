// Where a run is asked from elsewhere, and answers: `mlora ps` and its like. Adapters that come are checked here as those of a recipe are
// before a run, so that a wrong request is its sender's and never the run's.

import { existsSync, readFileSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "smol-toml";
import * as v from "valibot";
import { now } from "../base/clock.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { log } from "../base/log.ts";
import { memory } from "../base/machine.ts";
import { sum } from "../base/shape.ts";
import { Answers, type ControlRequest, type RunStatus, serveControl, type Underway } from "../bus/control.ts";
import { newRunKey, type SealedConnection } from "../bus/seal.ts";
import type { Announcement } from "../cluster/registry.ts";
import type { ReadProgress } from "../data/reading.ts";
import { writeFileAtomic } from "../files/atomic.ts";
import { lacking, lateAdapters } from "../plan/late-adapters.ts";
import { placeAdapter } from "../plan/places.ts";
import { type AdapterPlan, DEFAULT_TOKENS, type Plan, totalBytes, totalMemory } from "../plan/plan.ts";
import { formatRecipe, loadRecipe, parseRecipe } from "../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../recipe/recipe.ts";
import { adapterTable } from "../recipe/resolve.ts";
import type { AdapterKey } from "../recipe/schema.ts";
import { Additions } from "./additions.ts";
import { removeStored } from "./checkpoints.ts";
import { ending } from "./controls.ts";
import { checkReadable, withoutRows } from "./granted.ts";
import { planOn, type Request, readRequest, summariesOf } from "./prepare.ts";
import type { Training } from "./training.ts";

/** In a run's folder: the adapters that came while it went on, and who is paused. */
const ADDED = "added.toml";
const PAUSED = "paused.json";

/** What the reading of an addition may take: the run's own memory may not all be touched yet, and others wait for their turn. */
const [ADD_SHARE, ADD_MS] = [0.5, 3_600_000];

/** What a copy may have otherwise: all else decides what its steps so far were. */
const FORK_KEYS: readonly AdapterKey[] = [
  "learning_rate",
  "betas",
  "eps",
  "weight_decay",
  "max_grad_norm",
  "scheduler",
  "warmup",
  "min_lr_ratio",
  "dropout",
  "epochs",
  "steps",
  "eval_every",
  "patience",
  "min_delta",
  "priority",
];

/** The recipe with the adapters that came to its run while it went on; from the run's folder. */
export function withAdded(recipe: Recipe): Recipe {
  const path = join(recipe.run.output, ADDED);
  if (!existsSync(path)) return recipe;
  const names = new Set(recipe.adapters.map(({ name }) => name));
  const added = loadRecipe(path).adapters.filter(({ name }) => !names.has(name));
  return { ...recipe, adapters: [...recipe.adapters, ...added] };
}

/** The names in a file of those who are paused; none where there is no such file. */
function readPaused(path: string): readonly string[] {
  if (!existsSync(path)) return [];
  const parsed = v.safeParse(v.array(v.string()), tryParse(readFileSync(path, "utf8")));
  if (parsed.success) return parsed.output;
  throw new RequestError("run.paused", `${path} is no list of names`, "remove it to have all adapters go on");
}

function tryParse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export type DeskOptions = {
  readonly request: Request;
  readonly stop: AbortController;
  /** Makes the run known on this machine. */
  readonly known: Announcement;
  /** Stages cannot be opened again: they came from elsewhere. */
  readonly fixed: boolean;
};

/** A run as it is reached from elsewhere, whatever stages it has just now. */
export class RunControl {
  /** What the run does by now: its recipe and data, with all that was added. */
  request: Request;
  readonly #answers = new Answers();
  #suspend = new AbortController();
  #training: Training | null = null;
  #plan: Plan | null = null;
  /** Who stays paused when the stages are opened again, or the same command is given again. */
  #paused: readonly string[];
  #added: readonly AdapterRecipe[];
  /** Copies that are still to be made, by name: until they are, they are no part of what the run does. */
  readonly #copies = new Map<string, { readonly of: string; readonly after: number; readonly request: Request }>();
  readonly #started = now();
  readonly #additions = new Additions();

  constructor(private readonly options: DeskOptions) {
    this.request = options.request;
    const path = join(this.#output, ADDED);
    this.#added = existsSync(path) ? [...loadRecipe(path).adapters] : [];
    this.#paused = readPaused(join(this.#output, PAUSED));
    options.stop.signal.addEventListener("abort", () => this.#additions.end(ending()));
  }

  get #output(): string {
    return this.options.request.recipe.run.output;
  }

  /** `suspend` is aborted when the stages, which have just been opened, are to be opened again with room for who came. */
  renewed(): { readonly suspend: AbortSignal } {
    this.#suspend = new AbortController();
    return { suspend: this.#suspend.signal };
  }

  /** From now on requests go to this training. */
  attend(training: Training, plan: Plan): Disposable {
    this.#training = training;
    this.#plan = plan;
    const ended = /^(done|early|dropped|stopped|failed)$/;
    const waits = training.controls.adapters.filter(({ name, state }) => this.#paused.includes(name) && !ended.test(state));
    for (const { name } of waits) training.controls.pause(name);
    for (const [name, { of, after, request }] of this.#copies)
      try {
        training.controls.fork(of, this.#copyOf(plan, request), after);
      } catch (error) {
        log(0, () => `notice: the copy ${name} of ${of} was not made: ${textOf(error)}`);
        this.#copies.delete(name);
      }
    return {
      [Symbol.dispose]: () => {
        this.#keepPaused(training);
        this.#training = null;
      },
    };
  }

  /** Who is paused. */
  get paused(): readonly string[] {
    return this.#paused;
  }

  #keepPaused({ controls }: Training): void {
    const paused = controls.adapters.filter(({ state }) => state === "paused" || state === "pausing").map(({ name }) => name);
    if (`${paused}` === `${this.#paused}`) return;
    this.#paused = paused;
    writeFileAtomic(join(this.#output, PAUSED), `${JSON.stringify(paused)}\n`);
  }

  /** Says something to an adapter, or to all, and keeps who is paused by then. */
  #kept(training: Training, said: string): string {
    this.#keepPaused(training);
    return said;
  }

  /** Answers on this server, until it is disposed: to who has the key of this time, which this user alone can read. */
  async open({ connection, run }: { readonly connection: SealedConnection; readonly run: string }): Promise<Disposable> {
    const own = connection.derived(newRunKey());
    const stack = new DisposableStack();
    const refuse = (text: string) => log(0, () => `warning: ${text}`);
    stack.use(serveControl(own, run, async (request) => await this.#answer(request), refuse, this.#answers));
    stack.defer(() => this.#additions.end(opening()));
    await own.flush().catch(() => undefined); // what is asked before the server knows who listens is dropped; a loss is noticed elsewhere
    stack.defer(() => this.options.known.reachable(null));
    this.options.known.reachable({ address: own.address, key: own.key });
    return stack;
  }

  /** Those that joined are in the run's folder, so that the run can go on with them after anything. */
  readonly observer = {
    joined: ({ name, recipe }: AdapterPlan): void => {
      this.#remember([recipe]);
      const copy = this.#copies.get(name);
      if (copy) this.request = this.#grown(copy.request);
      this.#copies.delete(name);
    },
  };

  #remember(adapters: readonly AdapterRecipe[]): void {
    const known = new Set(this.#added.map(({ name }) => name));
    const added = [...this.#added, ...adapters.filter(({ name }) => !known.has(name))];
    if (added.length === known.size) return;
    writeFileAtomic(join(this.#output, ADDED), formatRecipe({ ...this.request.recipe, adapters: added }));
    this.#added = added;
  }

  #answer(request: ControlRequest): RunStatus | string | Promise<string | Underway> {
    if (request.type === "status") return this.#status();
    if (request.type === "stop" && request.adapter === null) {
      this.options.stop.abort(new RunError("run.stopped", "stopped before any training"));
      return "the run ends: what was begun is finished and everything is saved";
    }
    if (request.type === "outcome") return this.#additions.ask(request.ticket);
    const training = this.#training;
    const coming = request.type === "add" || request.type === "fork"; // who has just been added has no stages yet, and may be who comes now
    if (coming && this.options.stop.signal.aborted) throw ending();
    if (!training || (coming && this.#suspend.signal.aborted)) throw opening();
    const { controls } = training;
    if (request.type === "stop") return this.#kept(training, controls.stop(request.adapter!));
    if (request.type === "pause") return this.#kept(training, controls.pause(request.adapter));
    if (request.type === "resume") return this.#kept(training, controls.resume(request.adapter));
    if (request.type === "add") {
      const { text, path } = request;
      this.#asked(training, text, path); // what is wrong without a look at the data is said at once
      return this.#additions.begin((signal, progress) => this.#add(text, path, signal, progress));
    }
    return this.#fork(training, request);
  }

  #status(): RunStatus {
    const { stop } = this.options;
    const adapters = this.#training?.controls.adapters ?? [];
    const rate = sum(adapters.map(({ tokensPerSecond }) => tokensPerSecond ?? 0));
    const left = this.#training?.controls.tokensLeft ?? 0;
    const training = adapters.some(({ state }) => !/^(waiting|paused|done|early|dropped|stopped|failed)$/.test(state));
    return {
      state: stop.signal.aborted ? "stopping" : !this.#training ? "starting" : training ? "training" : "waiting",
      stages: this.#plan?.stages.length ?? 0,
      slots: this.#plan?.slots ?? 0,
      memoryBytes: this.#plan ? totalBytes(totalMemory(this.#plan)) : 0,
      tokensPerSecond: rate,
      seconds: (now() - this.#started) / 1000,
      secondsLeft: rate > 0 ? left / rate : null,
      adapters,
    };
  }

  /** The recipe that adapters come by, checked against the run. */
  #asked(training: Training, text: string, path: string): Recipe {
    const plan = this.#plan!;
    const { recipe } = this.request;
    const asked = parseRecipe(text, path);
    if (!existsSync(asked.model.path) || realpathSync(asked.model.path) !== realpathSync(recipe.model.path))
      throw new RequestError(
        "control.model",
        `${path} is for ${asked.model.path}, the run trains on ${recipe.model.path}`,
        "start a run of its own for it",
      );
    const { precision } = asked.model;
    const tokens = asked.run.tokensPerMicrobatch ?? DEFAULT_TOKENS;
    if ((precision !== "auto" && precision !== recipe.model.precision) || tokens !== plan.tokensPerMicrobatch)
      throw new RequestError(
        "control.otherwise",
        `${path} has precision ${precision} and ${tokens} tokens a micro-batch, the run ${recipe.model.precision} and ${plan.tokensPerMicrobatch}: in it these adapters would come out otherwise`,
        "give it the run's model.precision and run.tokens_per_microbatch",
      );
    this.#refuseTaken(training, asked.adapters);
    for (const adapter of asked.adapters) placeAdapter(adapter, plan.spec);
    checkReadable(asked.adapters);
    return asked;
  }

  /** Checks as for a run of their own; then they join, or the stages are opened again with room for them. */
  async #add(text: string, path: string, signal: AbortSignal, progress: (progress: ReadProgress) => void): Promise<string> {
    const { spec } = this.request;
    const { adapters: read } = parseRecipe(text, path);
    const most = Math.floor(ADD_SHARE * memory().availableBytes);
    const limits = { allMs: ADD_MS, mostBytes: most, mostGrowth: most };
    const late = await readRequest({ ...this.request.recipe, adapters: read }, spec, { signal, progress, ...limits }).catch(
      (error) => {
        throw withoutRows(error, path); // the answer travels
      },
    );
    signal.throwIfAborted();
    // The run has gone on meanwhile: others may have come.
    const training = this.#training;
    if (!training || this.#suspend.signal.aborted) throw opening();
    const asked = this.#asked(training, text, path);
    const plan = this.#plan!;
    const summaries = summariesOf(late.data);
    const adapters = lateAdapters(plan, asked.adapters, summaries);
    const grown = this.#grown(late);
    const needed = planOn(
      grown,
      plan.stages.map(({ device }) => device),
    );
    const lack = lacking(plan, adapters, summaries);
    const more = needed.slots > plan.slots && !training.controls.hasFreeSlot;
    if (lack !== null && this.options.fixed)
      throw new RequestError("control.room", `the stages have no ${lack}`, "start a run of its own for them");
    training.controls.checkOpen(); // before it is written down
    for (const { name } of asked.adapters) removeStored(this.#output, name); // of another that was here: these begin anew
    this.#remember(asked.adapters);
    this.request = grown;
    if (lack === null && (!more || this.options.fixed)) return training.controls.add(adapters, late.data);
    this.#suspend.abort();
    const names = asked.adapters.map(({ name }) => name).join(", ");
    return `${names}: added; the stages are opened again, with ${lack ?? `${needed.slots} slots instead of ${plan.slots}`}`;
  }

  #fork(training: Training, { adapter, name, changes }: Extract<ControlRequest, { type: "fork" }>): string {
    const plan = this.#plan!;
    const { request } = this;
    const from = request.recipe.adapters.findIndex((of) => of.name === adapter);
    if (from < 0) return training.controls.fork(adapter, plan.adapters[0]!); // says that there is none
    const wrong = Object.keys(changes).find((key) => !(FORK_KEYS as readonly string[]).includes(key));
    if (wrong !== undefined)
      throw new RequestError(
        "control.fork",
        `a copy of '${adapter}' cannot have another ${wrong}: its steps so far were made with it`,
        `it may have another ${FORK_KEYS.join(", ")}`,
      );
    const { epochs, steps, ...table } = adapterTable(request.recipe.adapters[from]!) as Record<string, unknown>;
    const length =
      "epochs" in changes || "steps" in changes ? {} : { ...(epochs ? { epochs } : {}), ...(steps ? { steps } : {}) };
    const { model, run } = request.recipe;
    const text = stringify({
      model: { path: model.path },
      run: { output: run.output, seed: run.seed },
      adapter: [{ ...table, ...length, ...changes, name }],
    });
    const { adapters } = parseRecipe(text, `the copy of ${adapter}`);
    this.#refuseTaken(training, adapters);
    const asked = { ...request, recipe: { ...request.recipe, adapters }, data: [request.data[from]!] };
    const copy = this.#copyOf(plan, asked);
    const after = training.controls.stepOf(adapter);
    this.#copies.set(name, { of: adapter, after, request: asked }); // before, as it may be made at once
    try {
      return training.controls.fork(adapter, copy, after);
    } catch (error) {
      this.#copies.delete(name);
      throw error;
    }
  }

  /** A copy as an adapter of this plan. */
  #copyOf(plan: Plan, { recipe: { adapters }, data }: Request): AdapterPlan {
    return lateAdapters(plan, adapters, summariesOf(data))[0]!;
  }

  #grown({ recipe: { adapters }, data }: Request): Request {
    const { recipe, data: before, ...model } = this.request;
    return { ...model, recipe: { ...recipe, adapters: [...recipe.adapters, ...adapters] }, data: [...before, ...data] };
  }

  #refuseTaken(training: Training, adapters: readonly AdapterRecipe[]): void {
    const taken = new Set(training.controls.names.map((name) => name.toLowerCase()));
    const twice = adapters.find(({ name }) => taken.has(name.toLowerCase()));
    if (twice) throw new RequestError("control.name", `the run has an adapter '${twice.name}' already`, "give it another name");
  }
}

const opening = (): RequestError =>
  new RequestError("control.starting", "the run's stages are being opened", "ask again when they are");

// One job from its files to its model. What a kill interrupts is done again from the last state that was saved, to the same
// bytes, and no event comes twice.

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { now } from "../base/clock.ts";
import { parseRecipe } from "../recipe/load.ts";
import type { LatestRows } from "../session/control/controls.ts";
import { readRequest, specFor, summariesOf } from "../session/preparation/prepare.ts";
import { savedTable } from "../session/preparation/saved-adapter.ts";
import {
  evaluateRows,
  isRewarded,
  type JobReferences,
  type JobStep,
  measureReferences,
  trainSteps,
} from "../session/primitives/job.ts";
import type { Primitives } from "../session/primitives/primitives.ts";
import { type RolloutStep, rolloutSteps } from "../session/primitives/rollout-job.ts";
import { columnsOf } from "../session/rollouts/rewards.ts";
import { apiErrorOf } from "./errors.ts";
import type { Files } from "./files.ts";
import { type RecipeMaker, TRAINING, VALIDATION } from "./job-recipe.ts";
import type { Asked, JobRow, JobStore, Metrics } from "./job-store.ts";
import type { Models } from "./models.ts";
import { methodOf } from "./openai/methods.ts";
import { checkTrainingFile } from "./openai/training-file.ts";
import type { Usage } from "./usage.ts";

const [RECIPE, PARENT] = ["recipe.toml", "parent"];

export type JobOptions = {
  readonly engine: Primitives;
  readonly store: JobStore;
  readonly files: Files;
  readonly models: Models;
  readonly usage: Usage;
  readonly recipes: RecipeMaker;
  /** Folder of all jobs. */
  readonly folder: string;
  readonly organization: string;
  readonly saveSeconds: number;
  /** Models of ends of epochs that are kept. */
  readonly checkpoints: number;
  /** Rows that a training file must have. */
  readonly rows: number;
};

/** Why a job that is under way ends before its last step; what it has trained is saved. */
export type Halt = "paused" | "cancelled" | "stopping";

export class JobRun {
  readonly folder: string;
  /** The rows of the last step. */
  latestRows: LatestRows | null = null;
  readonly #halt = new AbortController();

  constructor(
    readonly job: JobRow,
    private readonly options: JobOptions,
  ) {
    this.folder = join(options.folder, job.id);
  }

  /** The first of several counts. */
  halt(why: Halt): void {
    this.#halt.abort(why);
  }

  get halted(): Halt | null {
    return this.#halt.signal.aborted ? (this.#halt.signal.reason as Halt) : null;
  }

  /** Keeps what the job is made from under its own names, which stay when the tenant deletes it. Throws where it is gone. */
  keepFiles(): void {
    const { asked, tenant } = this.job;
    const { files, models } = this.options;
    const parent = models.find(tenant, asked.model);
    mkdirSync(this.folder, { recursive: true });
    for (const { id, name } of recipeFiles(asked)) files.link(files.find(tenant, id, "train").id, join(this.folder, name));
    if (asked.recipe) return;
    if (parent) cpSync(parent.folder, join(this.folder, PARENT), { recursive: true });
    files.link(files.find(tenant, asked.training_file, "training_file").id, join(this.folder, TRAINING));
    if (asked.validation_file !== null)
      files.link(files.find(tenant, asked.validation_file, "validation_file").id, join(this.folder, VALIDATION));
  }

  /** Reads and checks its files and its recipe. Throws ApiErrors and RequestErrors; `param` of these says which file. */
  async prepare(): Promise<void> {
    const { asked } = this.job;
    if (asked.recipe) this.#say("Reading the rows of the recipe", "validating");
    else await this.#checkFiles();
    const text = this.#recipeText();
    await this.#read(text);
    writeFileAtomic(join(this.folder, RECIPE), text);
  }

  async #checkFiles(): Promise<void> {
    const { asked } = this.job;
    this.#say(`Validating training file: ${asked.training_file}`, "validating");
    const columns = asked.grader ? columnsOf(asked.grader) : [];
    await checkTrainingFile(join(this.folder, TRAINING), asked.method, this.options.rows, "training_file", columns);
    if (asked.validation_file !== null) {
      this.#say(`Validating validation file: ${asked.validation_file}`, "validating too");
      await checkTrainingFile(join(this.folder, VALIDATION), asked.method, 1, "validation_file");
    }
  }

  /** Its files have been checked. */
  get isPrepared(): boolean {
    return existsSync(join(this.folder, RECIPE));
  }

  #recipeText(): string {
    const { asked, id } = this.job;
    const parent = join(this.folder, PARENT);
    if (asked.recipe) return this.options.recipes.ofRecipe(id, this.folder, asked.recipe);
    return this.options.recipes.ofJob({
      ...{ id, folder: this.folder, seed: asked.seed, hasValidation: asked.validation_file !== null },
      ...{ n_epochs: asked.n_epochs, batch_size: asked.batch_size },
      learning_rate_multiplier: asked.learning_rate_multiplier,
      objective: methodOf(asked.method).objective(asked),
      rowsOfRow: asked.generations ?? 1,
      continues: existsSync(parent) ? savedTable(parent, this.options.engine.plan.spec) : null,
    });
  }

  /** The recipe's rows. */
  async #read(text: string) {
    const recipe = parseRecipe(text, join(this.folder, RECIPE));
    try {
      return await readRequest(recipe, specFor(recipe), { signal: this.#halt.signal });
    } catch (error) {
      throw this.#named(error);
    }
  }

  /** Trains to the end, or until it is halted; returns whether it came to the end. */
  async train(): Promise<boolean> {
    const { engine } = this.options;
    const { id } = this.job;
    const { recipe, data, notices } = await this.#read(readFileSync(join(this.folder, RECIPE), "utf8"));
    for (const notice of notices) this.#say(this.#local(notice), `notice ${notice}`, "warn");
    const [{ train, eval: heldOut }] = data as [(typeof data)[number]];
    const adapter = await engine.add(recipe.adapters[0]!, summariesOf(data)[0], this.job.tenant);
    try {
      const state = join(this.folder, "state");
      if (existsSync(state)) await engine.load(id, state);
      const references = await this.#references(adapter, train, heldOut);
      this.#say("Fine-tuning job started", "started");
      let saved = now();
      let steps = engine.stepsOf(id);
      if (steps < adapter.steps && this.halted === null)
        for await (const step of this.#steps(adapter, train, references?.train ?? null)) {
          steps = step.step;
          this.latestRows = { step: steps, rows: step.rows.map((row) => train[row]!) };
          const valid =
            step.endsEpoch && heldOut.length > 0
              ? await evaluateRows(engine, adapter, heldOut, references?.eval ?? null)
              : null;
          const metrics = this.#metricsOf(step, valid);
          const reward = step.scalars?.["reward"] === undefined ? "" : `, mean reward=${step.scalars["reward"].toFixed(4)}`;
          const text = `Step ${step.step}/${step.steps}: training loss=${step.loss.toFixed(2)}${reward}`;
          this.options.store.db.together(() => {
            if (this.#say(text, `step ${step.step}`, "info", metrics))
              // else it was made and counted before a kill
              this.options.usage.add(this.job.tenant, this.#baseName, { trained_tokens: step.tokens });
          });
          if (step.endsEpoch && step.step < step.steps) await this.#checkpoint(step.step, metrics);
          if (step.endsBatch === false) continue; // a state is of an adapter that has learned its answers
          if (this.halted !== null || now() - saved >= 1000 * this.options.saveSeconds || step.step === step.steps) {
            await engine.saveState(id, state);
            saved = now();
          }
          if (this.halted !== null) break;
        }
      if (steps < adapter.steps) return false;
      await this.#finish(adapter.tokens);
      return true;
    } finally {
      await engine.remove(id);
    }
  }

  /** Those of rows that are known, or of answers; a halt while these are made ends them as one between two steps does. */
  async *#steps(
    adapter: Parameters<typeof trainSteps>[1],
    train: Parameters<typeof trainSteps>[2],
    references: JobReferences | null,
  ): AsyncGenerator<JobStep & Partial<Pick<RolloutStep, "scalars" | "endsBatch">>> {
    const { engine } = this.options;
    if (!isRewarded(adapter.recipe)) return yield* trainSteps(engine, adapter, train, references);
    const { signal } = this.#halt;
    const notice = (text: string) => void this.#say(this.#local(text), `notice ${engine.stepsOf(this.job.id)} ${text}`, "warn");
    try {
      yield* rolloutSteps(engine, adapter, train, { notice, signal });
    } catch (error) {
      if (!signal.aborted || error !== signal.reason) throw error;
      await engine.saveState(this.job.id, join(this.folder, "state"));
    }
  }

  /** Measured once: the adapter's own beginning is what it is compared with. */
  async #references(
    adapter: Parameters<typeof measureReferences>[1],
    train: Parameters<typeof measureReferences>[2],
    heldOut: Parameters<typeof measureReferences>[2],
  ): Promise<{ readonly train: JobReferences; readonly eval: JobReferences } | null> {
    const path = join(this.folder, "references.json");
    if (existsSync(path)) return JSON.parse(readFileSync(path, "utf8"));
    const found = await measureReferences(this.options.engine, adapter, train);
    if (found === null) return null;
    const references = { train: found, eval: (await measureReferences(this.options.engine, adapter, heldOut)) ?? [] };
    writeFileAtomic(path, JSON.stringify(references));
    return references;
  }

  #metricsOf(
    { step, steps, loss, accuracy, gradNorm, learningRate, tokens, scalars }: JobStep & Partial<Pick<RolloutStep, "scalars">>,
    valid: { readonly loss: number; readonly accuracy: number } | null,
  ): Metrics {
    if (scalars) {
      const { reward, ...others } = scalars;
      const mean = reward === undefined ? {} : { train_mean_reward: reward };
      const own = { grad_norm: gradNorm, learning_rate: learningRate, tokens };
      return { ...{ step, total_steps: steps, train_loss: loss, ...mean, ...own }, ...others };
    }
    const kind = methodOf(this.job.asked.method).rows === "pairs" ? "accuracy" : "mean_token_accuracy";
    const accuracies = (name: string, value: number) => ({ [`${name}_${kind}`]: value });
    return {
      ...{ step, total_steps: steps, train_loss: loss },
      ...accuracies("train", accuracy),
      ...{ grad_norm: gradNorm, learning_rate: learningRate, tokens },
      ...(valid
        ? {
            ...{ valid_loss: valid.loss, full_valid_loss: valid.loss },
            ...{ ...accuracies("valid", valid.accuracy), ...accuracies("full_valid", valid.accuracy) },
          }
        : {}),
    };
  }

  /** The base model at the root of what the job continues. */
  get #baseName(): string {
    return this.options.models.base.name;
  }

  /** A name of OpenAI's form; the base model's may hold a slash. */
  get modelName(): string {
    const { id, asked } = this.job;
    return `ft:${this.#baseName}:${this.options.organization}:${asked.suffix}:${id.replace(/^ftjob-/, "").slice(0, 12)}`;
  }

  /** The model of an epoch's end. */
  async #checkpoint(step: number, metrics: Metrics): Promise<void> {
    const { engine, store, models, checkpoints: most } = this.options;
    const { id, tenant, asked } = this.job;
    const [newest] = store.checkpoints(id, null, 1);
    if (most === 0 || (newest && newest.step >= step)) return; // it was made before a kill
    const folder = join(this.folder, `step-${step}`);
    const name = `${this.modelName}:ckpt-step-${step}`;
    await engine.save(id, folder);
    store.db.together(() => {
      models.add({ name, tenant, folder, parent: asked.model });
      store.addCheckpoint(id, step, name, metrics);
      this.#say(`Checkpoint created at step ${step}`, `checkpoint ${step}`);
    });
    await this.#prune();
  }

  /** Models of epochs before the last few go. */
  async #prune(): Promise<void> {
    const { store, models, checkpoints: most } = this.options;
    for (const old of store.checkpoints(this.job.id, null, 1000).slice(Math.max(1, most))) {
      store.removeCheckpoint(old.id);
      const row = models.list(this.job.tenant).find((model) => model.name === old.model);
      if (row) await models.remove(row);
    }
  }

  async #finish(tokens: number): Promise<void> {
    const { engine, store, models, files } = this.options;
    const { id, tenant, asked } = this.job;
    const folder = join(this.folder, "model");
    const last = store.metrics(id).at(-1)!;
    await engine.save(id, folder);
    const name = this.modelName;
    store.db.together(() => {
      models.add({ name, tenant, folder, parent: asked.model });
      const file = files.make(tenant, "step_metrics.csv", "fine-tune-results", csvOf(store.metrics(id)));
      store.addCheckpoint(id, last["step"]!, name, last);
      store.succeed(id, name, tokens, file.id);
      this.#say(`New fine-tuned model created: ${name}`, "model");
      this.#say("The job has successfully completed", "completed");
    });
    await this.#prune();
    this.forget();
  }

  /** Removes what only its training needed, and weights that are no model any more; models stay. */
  forget(): void {
    const files = recipeFiles(this.job.asked).map(({ name }) => name);
    const weights = existsSync(this.folder) ? readdirSync(this.folder).filter((name) => /^(model|step-\d+)$/.test(name)) : [];
    const left = weights.filter((name) => !this.options.models.hasFolder(join(this.folder, name)));
    for (const name of ["state", "references.json", TRAINING, VALIDATION, PARENT, ...files, ...left])
      rmSync(join(this.folder, name), { recursive: true, force: true });
  }

  #say(message: string, key: string, level: "info" | "warn" = "info", metrics: Metrics | null = null): boolean {
    const more = metrics ? ({ type: "metrics", data: metrics } as const) : {};
    return this.options.store.event(this.job.id, message, { level, ...more }, key);
  }

  /** A text without the server's own folders. */
  #local(text: string): string {
    return text.replaceAll(`${this.folder}/`, "").replaceAll(`adapter '${this.job.id}': `, "");
  }

  /** A fault of the data as the client's: which file it is, and the lines. */
  #named(thrown: unknown): unknown {
    if (this.#halt.signal.aborted) return thrown;
    const { error, isUnexpected } = apiErrorOf(thrown);
    if (isUnexpected) return thrown;
    const param = error.message.includes(join(this.folder, VALIDATION)) ? "validation_file" : "training_file";
    return new JobFault(this.#local(error.message), param);
  }
}

const recipeFiles = ({ recipe }: Asked) => (recipe ? [...recipe.train, ...recipe.eval] : []);

/** What is wrong with a job's files. */
export class JobFault extends Error {
  constructor(
    message: string,
    readonly param: string,
  ) {
    super(message);
  }
}

const COLUMNS = [
  ["step", "step"],
  ["train_loss", "train_loss"],
  ["train_accuracy", "train_mean_token_accuracy"],
  ["valid_loss", "valid_loss"],
  ["valid_mean_token_accuracy", "valid_mean_token_accuracy"],
  ["full_valid_loss", "full_valid_loss"],
  ["full_valid_mean_token_accuracy", "full_valid_mean_token_accuracy"],
] as const;

/** Of jobs that learn from rewards. */
const REWARDED = [
  ["step", "step"],
  ["train_loss", "train_loss"],
  ["train_mean_reward", "train_mean_reward"],
] as const;

/** The result file: a line for each step; columns of validation where there is some. */
export function csvOf(metrics: readonly Metrics[]): string {
  const isMeasured = metrics.some((of) => of["full_valid_loss"] !== undefined);
  const isRewarded = metrics.some((of) => of["train_mean_reward"] !== undefined);
  const columns = isRewarded ? REWARDED : isMeasured ? COLUMNS : COLUMNS.slice(0, 5);
  const value = (of: Metrics, key: string) => of[key] ?? of[key.replace("mean_token_", "")] ?? "";
  const lines = metrics.map((of) => columns.map(([, key]) => value(of, key)).join(","));
  return `${[columns.map(([name]) => name).join(","), ...lines].join("\n")}\n`;
}

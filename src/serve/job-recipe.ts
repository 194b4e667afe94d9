// What a job asks for, as a recipe: the same recipe in `mlora run` comes to the same bytes.

import { join } from "node:path";
import { stringify } from "smol-toml";
import type { ModelSpec } from "../base/spec.ts";
import { parseRecipe } from "../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../recipe/recipe.ts";
import { savedTable } from "../session/preparation/saved-adapter.ts";
import type { ServeConfig } from "./config.ts";
import { badRequest } from "./errors.ts";
import type { RecipeAsked } from "./job-store.ts";

type Auto = number | "auto" | undefined;
export type Hyperparameters = {
  readonly n_epochs: number;
  readonly batch_size: number;
  readonly learning_rate_multiplier: number;
};

/** About three epochs; more of few rows and fewer of very many. */
function epochsFor(rows: number): number {
  const [usual, least, most] = [3, 100, 25_000];
  if (rows * usual < least) return Math.min(25, Math.ceil(least / rows));
  return rows * usual > most ? Math.max(1, Math.floor(most / rows)) : usual;
}

/** Numbers in place of "auto", by the number of rows. */
export const hyperparametersFor = (
  rows: number,
  { n_epochs, batch_size, learning_rate_multiplier }: { n_epochs?: Auto; batch_size?: Auto; learning_rate_multiplier?: Auto },
): Hyperparameters => ({
  n_epochs: typeof n_epochs === "number" ? n_epochs : epochsFor(rows),
  batch_size: typeof batch_size === "number" ? batch_size : Math.min(256, Math.max(1, Math.round(0.002 * rows))),
  learning_rate_multiplier: typeof learning_rate_multiplier === "number" ? learning_rate_multiplier : 1,
});

export type JobRecipe = Hyperparameters & {
  readonly id: string;
  readonly folder: string;
  readonly seed: number;
  readonly objective: string | ({ readonly name: string } & Readonly<Record<string, unknown>>);
  /** Rows of a micro-batch that come of a row. */
  readonly rowsOfRow: number;
  readonly hasValidation: boolean;
  /** Of the adapter that it continues: its shape by a recipe's keys, `from` among them. */
  readonly continues: Readonly<Record<string, unknown>> | null;
};

export type Trained = {
  readonly rank: number;
  readonly seed: number;
  /** Whether the linears of attention, and those of the MLP, are adapted. */
  readonly attention: boolean;
  readonly mlp: boolean;
};
/** Tinker's clients cannot say an alpha; its service has this one. */
const ALPHA = 32;
/** Regular expressions of module paths. */
const [ATTENTION, MLP] = [String.raw`.*attn\.[a-z_]+`, String.raw`.*\.mlp\..*`];

/** Keys of a recipe that a client may set: none of them has the server read a file or start a program. */
const SERVED: readonly string[] = [
  ...["data", "format", "columns", "template", "chat_template", "chat_template_kwargs", "thoughts", "system", "train_on"],
  ...["objective", "method", "rank", "dropout", "alpha", "rslora", "init", "rank_pattern", "alpha_pattern", "experts"],
  ...["lora_plus_ratio", "trainable_tokens", "projection_seed", "d_initial", "targets", "exclude", "layers"],
  ...["optimizer", "learning_rate", "betas", "eps", "momentum", "nesterov", "weight_decay", "max_grad_norm"],
  ...["scheduler", "warmup", "min_lr_ratio", "epochs", "steps", "batch_size", "accumulation", "max_length", "overlong"],
  ...["shuffle", "seed", "min_delta", "priority"],
];

export const TRAINING = "training.jsonl";
export const VALIDATION = "validation.jsonl";

export class RecipeMaker {
  /** The learning rate of multiplier 1. */
  readonly #rate: number;
  /** Tokens of a job's row, at most. */
  readonly maxLength: number;

  /** Throws a RequestError where the config's [adapter] is not valid as a recipe's [defaults]. */
  constructor(private readonly config: ServeConfig) {
    const probe = this.#parse(config.folder, { name: "probe", data: "none.jsonl", epochs: 1 });
    this.#rate = probe.adapters[0]!.optimizer.learningRate;
    this.maxLength = probe.adapters[0]!.maxLength;
  }

  /** The recipe's text. Throws a RequestError, `recipe.invalid`. */
  ofJob(job: JobRecipe): string {
    const { batch_size: rows } = job;
    const most = Math.max(1, Math.min(rows, Math.floor(this.config.capacity.batch_size / job.rowsOfRow)));
    const micro = Array.from({ length: most }, (_, i) => most - i).find((size) => rows % size === 0)!;
    const rate = this.#rate * job.learning_rate_multiplier;
    if (!(rate > 0 && Number.isFinite(rate)))
      throw badRequest("'learning_rate_multiplier' is too small or too large.", "hyperparameters");
    const table = {
      ...{ name: job.id, data: { train: TRAINING, ...(job.hasValidation ? { eval: VALIDATION } : {}) }, epochs: job.n_epochs },
      ...{ batch_size: micro, accumulation: rows / micro, learning_rate: rate, seed: job.seed, objective: job.objective },
      ...job.continues,
    };
    this.#parse(job.folder, table);
    return this.#text(job.folder, table);
  }

  /**
   * A recipe's adapter as a job's: nothing of the config's [adapter] is added. Throws a RequestError, `recipe.invalid`, and
   * ApiErrors for what a job cannot have, or may not read.
   */
  ofRecipe(id: string, folder: string, { adapter, train, eval: held }: RecipeAsked): string {
    for (const key of Object.keys(adapter))
      if (!SERVED.includes(key)) throw badRequest(`'${key}' is not served: leave it out of the recipe.`, `adapter.${key}`);
    if (typeof adapter["chat_template"] === "string")
      throw badRequest(
        "'chat_template' is a file, expected true or false: the server reads no other files.",
        "adapter.chat_template",
      );
    const { split, ...others } = (adapter["data"] ?? {}) as Record<string, unknown>;
    const [unserved] = Object.keys(others);
    if (unserved !== undefined) throw badRequest(`'data.${unserved}' is not served.`, "adapter.data");
    const data = {
      train: train.map(({ name }) => name),
      ...(held.length > 0 ? { eval: held.map(({ name }) => name) } : {}),
      ...(split === undefined ? {} : { split }),
    };
    const text = this.#text(folder, { ...adapter, ...this.#rewarded(adapter["objective"]), name: id, data }, {});
    const [of] = parseRecipe(text, join(folder, "recipe.toml")).adapters;
    const { reward: _, ...objective } = { reward: null, ...of!.objective };
    if (Object.values(objective).some((value) => typeof value === "object"))
      throw badRequest("'objective' names a folder or a program, which the server does not read.", "adapter.objective");
    return text;
  }

  /**
   * An objective whose rewards are the server's own of their names, or graders: what a client names beyond that would be
   * started, or asked, by the server. Throws ApiErrors.
   */
  #rewarded(objective: unknown): { readonly objective?: unknown } {
    if (typeof objective !== "object" || objective === null || !("reward" in objective)) return {};
    const { rewards } = this.config;
    const names = Object.keys(rewards);
    const served =
      names.length > 0 ? `name one of ${names.join(", ")}` : "its operator may add some (serve.toml, [rewards.NAME])";
    const own = [objective.reward].flat().map((reward: unknown) => {
      const given: Readonly<Record<string, unknown>> = typeof reward === "object" && reward !== null ? { ...reward } : {};
      if ("grader" in given) return given;
      const { name, weight, ...others } = given;
      const [other] = Object.keys(others);
      if (other !== undefined)
        throw badRequest(
          `'objective.reward.${other}' is not served: give a grader, or a reward of the server by its name: ${served}.`,
          "adapter.objective",
        );
      if (typeof name !== "string" || !Object.hasOwn(rewards, name))
        throw badRequest(`The server has no reward ${JSON.stringify(name)}: ${served}.`, "adapter.objective");
      return { ...rewards[name], name, ...(weight === undefined ? {} : { weight }) };
    });
    return { objective: { ...objective, reward: own.length === 1 ? own[0] : own } };
  }

  /** What a text of these is. */
  parsed(text: string): Recipe {
    return parseRecipe(text, join(this.config.folder, "recipe.toml"));
  }

  /** An adapter that is read from a folder, to be asked. */
  ofSaved(name: string, saved: Readonly<Record<string, unknown>>): AdapterRecipe {
    return this.#parse(this.config.folder, { ...{ name, data: "none.jsonl", batch_size: 1, accumulation: 1 }, ...saved })
      .adapters[0]!;
  }

  /** The adapter in a folder. Throws RequestErrors where it does not fit the model. */
  ofFolder(name: string, folder: string, spec: ModelSpec): AdapterRecipe {
    return this.ofSaved(name, savedTable(folder, spec));
  }

  /** A LoRA that a client trains itself. What it is follows from what the client says, and not from the config's [adapter]. */
  ofTrained(name: string, { rank, seed, attention, mlp }: Trained): AdapterRecipe {
    const left = [...(attention ? [] : [ATTENTION]), ...(mlp ? [] : [MLP])];
    const exclude = left.length > 0 ? { exclude: left.join("|") } : {};
    const { batch_size, max_length } = this.config.capacity;
    const adapter = {
      ...{ name, data: "none.jsonl", method: "lora", rank, alpha: ALPHA, seed, targets: "all-linear", ...exclude },
      ...{ batch_size, accumulation: 1, max_length, optimizer: "adamw", betas: [0.9, 0.95], eps: 1e-12, max_grad_norm: false },
    };
    return parseRecipe(this.#text(this.config.folder, adapter, {}), join(this.config.folder, "recipe.toml")).adapters[0]!;
  }

  #parse(folder: string, adapter: object): Recipe {
    return parseRecipe(this.#text(folder, adapter), join(folder, "recipe.toml"));
  }

  #text(folder: string, adapter: object, own: object = this.config.adapter): string {
    const { base, model, run, capacity } = this.config;
    return `${stringify({
      model: { path: base, precision: model.precision },
      run: { output: join(folder, "run"), ...run },
      defaults: { max_length: capacity.max_length, ...own },
      adapter: [adapter],
    })}\n`;
  }
}

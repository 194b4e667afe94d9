// Requests for adapters that join a run under way: an added recipe and a copy are checked like a run's own recipe.

import { existsSync, realpathSync } from "node:fs";
import { stringify } from "smol-toml";
import { RequestError } from "../../base/errors.ts";
import { count, counted } from "../../base/units.ts";
import { placeAdapter } from "../../plan/places.ts";
import { DEFAULT_TOKENS, type Plan } from "../../plan/plan.ts";
import { parseRecipe } from "../../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import type { AdapterKey } from "../../recipe/schema.ts";
import type { Request } from "../preparation/prepare.ts";

/** What a copy may change: all other keys decided the steps that it has made. */
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

/** A copy of `adapter` under another name; `changes` are a recipe's keys. */
export type ForkRequest = {
  readonly adapter: string;
  readonly name: string;
  readonly changes: Readonly<Record<string, unknown>>;
};

/** Throws RequestErrors where `asked` cannot join the run: base model, precision or pass size differ, or a name is taken. */
export function checkAdded(asked: Recipe, { recipe }: Request, plan: Plan, taken: readonly string[]): void {
  const { path, model, run, adapters } = asked;
  if (!existsSync(model.path) || realpathSync(model.path) !== realpathSync(recipe.model.path))
    throw new RequestError(
      "control.model",
      `${path} is for ${model.path}, the run trains on ${recipe.model.path}`,
      "start a run of its own for it",
    );
  const { precision } = model;
  const tokens = run.tokensPerMicrobatch ?? DEFAULT_TOKENS;
  if ((precision !== "auto" && precision !== recipe.model.precision) || tokens !== plan.tokensPerMicrobatch)
    throw new RequestError(
      "control.otherwise",
      `${path} has precision ${precision} and ${counted(tokens, "token")} a micro-batch, the run ${recipe.model.precision} and ${count(plan.tokensPerMicrobatch)}: they would train to different weights in this run`,
      "give it the run's model.precision and run.tokens_per_microbatch",
    );
  checkNames(adapters, taken);
  for (const adapter of adapters) placeAdapter(adapter, plan.spec);
}

/** The copy as a request of its own: the data of the adapter at index `from` of the run's, and its recipe with the changes. */
export function forkRequest(
  request: Request,
  from: number,
  { adapter, name, changes }: ForkRequest,
  taken: readonly string[],
): Request {
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
  checkNames(adapters, taken);
  return { ...request, recipe: { ...request.recipe, adapters }, data: [request.data[from]!] };
}

function checkNames(adapters: readonly AdapterRecipe[], taken: readonly string[]): void {
  const names = new Set(taken.map((name) => name.toLowerCase()));
  const twice = adapters.find(({ name }) => names.has(name.toLowerCase()));
  if (twice) throw new RequestError("control.name", `the run has an adapter '${twice.name}' already`, "give it another name");
}

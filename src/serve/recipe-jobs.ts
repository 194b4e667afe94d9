// Jobs that are made from an adapter of a recipe, as `mlora submit` asks for them, and the files of what they have trained.
// They are watched, paused and cancelled like others.

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { expected } from "../base/check.ts";
import { isPaired, isRewarded } from "../session/primitives/job.ts";
import type { ServeConfig } from "./config.ts";
import { badRequest, notFound } from "./errors.ts";
import type { FileRow, Files } from "./files.ts";
import type { RecipeMaker } from "./job-recipe.ts";
import type { Asked } from "./job-store.ts";
import type { Jobs } from "./jobs.ts";
import { jobObject } from "./openai/jobs.ts";
import type { Call, Route } from "./router.ts";

const MOST_FILES = 64;

/** What OpenAI would call it. */
const methodFor = (recipe: Parameters<typeof isPaired>[0]) =>
  isRewarded(recipe) ? "reinforcement" : isPaired(recipe) ? "dpo" : "supervised";
const fileIds = (least: number) =>
  v.pipe(v.array(v.string()), v.minLength(least, "is empty"), v.maxLength(MOST_FILES, `has more than ${MOST_FILES} files`));

export const CreateRecipeJob = v.strictObject({
  /** What the recipe calls its adapter. */
  name: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{1,64}$/, expected("letters, digits, '_' and '-'"))),
  /** The keys of [[adapter]], with nothing left to defaults; of `data` only `split`. */
  adapter: v.record(v.string(), v.unknown()),
  train: fileIds(1),
  eval: v.optional(fileIds(0), []),
  /** Of the recipe: what decides numbers, and must be as the server's. Null: not given. */
  precision: v.string(),
  tokens_per_microbatch: v.nullable(v.number()),
});

export type RecipeJobsOptions = {
  readonly jobs: Jobs;
  readonly files: Files;
  readonly recipes: RecipeMaker;
  readonly config: ServeConfig;
};

export function recipeJobRoutes({ jobs, files, recipes, config }: RecipeJobsOptions): Route[] {
  const { organization } = config.server;

  const create = async ({ tenant, json, request }: Call): Promise<Response> => {
    const body = await json(CreateRecipeJob);
    requireSame("model.precision", body.precision, config.model.precision);
    requireSame("run.tokens_per_microbatch", body.tokens_per_microbatch, config.run.tokens_per_microbatch ?? null);
    const found = (ids: readonly string[], param: string) => ids.map((id) => files.find(tenant, id, param));
    const [train, held] = [found(body.train, "train"), found(body.eval, "eval")];
    const asked = { adapter: body.adapter, train: named("train", train), eval: named("eval", held) };
    const [recipe] = recipes.parsed(recipes.ofRecipe("probe", config.folder, asked)).adapters;
    const { epochs, batchSize, accumulation, seed } = recipe!;
    const of: Asked = {
      ...{ n_epochs: epochs ?? 1, batch_size: batchSize * accumulation, learning_rate_multiplier: 1, beta: null },
      ...{ model: config.name, training_file: body.train[0]!, validation_file: body.eval[0] ?? null },
      ...{ suffix: body.name, seed, method: methodFor(recipe!), metadata: null, recipe: asked },
    };
    const job = jobs.create(tenant, of, request.headers.get("idempotency-key"));
    return Response.json(jobObject(job, organization));
  };

  const folderOf = ({ tenant, params }: Call): string => {
    const folder = jobs.adapterFolder(tenant, params["id"]!);
    if (folder === null) throw notFound(`Job ${params["id"]} has no adapter.`, "fine_tuning_job_id");
    return folder;
  };
  const filesOf = (folder: string): string[] => readdirSync(folder).filter((name) => statSync(join(folder, name)).isFile());

  const path = "/v1/fine_tuning/jobs/:id/adapter";
  return [
    {
      ...{ method: "POST", path: "/v1/fine_tuning/recipe_jobs", summary: "Create a job from a recipe's adapter" },
      ...{ handler: create, body: CreateRecipeJob },
    },
    {
      ...{ method: "GET", path, summary: "List the files of the adapter that a job has trained" },
      handler: (call) => {
        const folder = folderOf(call);
        const data = filesOf(folder).map((name) => ({ name, bytes: statSync(join(folder, name)).size }));
        return Response.json({ object: "list", data });
      },
    },
    {
      ...{ method: "GET", path: `${path}/:file`, summary: "A file of it" },
      handler: (call) => {
        const folder = folderOf(call);
        const name = filesOf(folder).find((of) => of === call.params["file"]);
        if (name === undefined) throw notFound(`The adapter has no file '${call.params["file"]}'.`, "file");
        return new Response(Bun.file(join(folder, name)), { headers: { "content-type": "application/octet-stream" } });
      },
    },
  ];
}

function requireSame(key: string, given: string | number | null, own: string | number | null): void {
  const shown = (value: string | number | null) => (value === null ? "not given" : `${value}`);
  if (given !== own)
    throw badRequest(`${key} is ${shown(given)} in the recipe, and ${shown(own)} at the server: numbers would differ.`, key);
}

/** Names in the job's folder: what a file is shows by its ending. */
const named = (what: string, rows: readonly FileRow[]) =>
  rows.map(({ id, filename }, i) => ({ id, name: `${what}-${i}${/(\.[A-Za-z0-9]{1,8}){1,2}$/.exec(filename)?.[0] ?? ""}` }));

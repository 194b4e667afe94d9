// /v1/fine_tuning/jobs: created, listed, watched, cancelled, paused and resumed.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { randomSeed } from "../../base/secret.ts";
import type { ServeTable } from "../config.ts";
import { badRequest } from "../errors.ts";
import type { Files } from "../files.ts";
import { hyperparametersFor } from "../job-recipe.ts";
import type { CheckpointRow, EventRow, JobRow, JobStore } from "../job-store.ts";
import type { Jobs } from "../jobs.ts";
import type { Models } from "../models.ts";
import { type Call, limitOf, listOf, type Route } from "../router.ts";
import { GraderTable, graderIn } from "./graders.ts";
import { METHODS, methodOf } from "./methods.ts";

const auto = <S extends v.GenericSchema>(schema: S) =>
  v.nullish(v.union([v.literal("auto"), schema], expected('a number or "auto"')));
const whole = (least: number, most: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(most));
const above = (most: number) => v.pipe(v.number(), v.gtValue(0), v.maxValue(most));
const hyperparameters = {
  n_epochs: auto(whole(1, 50)),
  batch_size: auto(whole(1, 256)),
  learning_rate_multiplier: auto(above(1e4)),
};
const Supervised = v.object(hyperparameters);
const Dpo = v.object({ ...hyperparameters, beta: auto(above(1e3)) });
const Reinforcement = v.object({
  grader: GraderTable,
  hyperparameters: v.nullish(
    v.object({
      ...hyperparameters,
      compute_multiplier: auto(above(64)),
      reasoning_effort: v.nullish(v.literal("default", 'is not "default": the model has no efforts')),
      eval_interval: auto(whole(1, 1e6)),
      eval_samples: auto(whole(1, 1e6)),
    }),
  ),
});
/** Of an answer, where the config says nothing. */
const MOST_NEW_TOKENS = 256;
const string = (most: number) => v.pipe(v.string(expected("a string")), v.maxLength(most, `has more than ${most} characters`));

export const CreateJob = v.object({
  model: string(512),
  training_file: string(512),
  validation_file: v.nullish(string(512)),
  suffix: v.nullish(v.pipe(string(64), v.regex(/^[A-Za-z0-9._-]*$/, "may have letters, digits, '.', '_' and '-'"))),
  seed: v.nullish(whole(0, 2 ** 31 - 1)),
  method: v.nullish(
    v.object({
      type: v.picklist(Object.keys(METHODS) as (keyof typeof METHODS)[], expected("supervised, dpo or reinforcement")),
      supervised: v.nullish(v.object({ hyperparameters: v.nullish(Supervised) })),
      dpo: v.nullish(v.object({ hyperparameters: v.nullish(Dpo) })),
      reinforcement: v.nullish(Reinforcement),
    }),
  ),
  hyperparameters: v.nullish(Supervised),
  integrations: v.nullish(v.array(v.object({ type: v.string() }))),
  metadata: v.nullish(
    v.pipe(
      v.record(string(64), string(512), expected("an object of strings")),
      v.check((pairs) => Object.keys(pairs).length <= 16, "has more than 16 pairs"),
    ),
  ),
});

export function jobObject({ asked, ...job }: JobRow, organization: string) {
  const { n_epochs, batch_size, learning_rate_multiplier, beta } = asked;
  const numbers = { n_epochs, batch_size, learning_rate_multiplier };
  const { defaultBeta, rows } = methodOf(asked.method);
  const own = {
    ...numbers,
    ...(defaultBeta === null ? {} : { beta: beta ?? defaultBeta }),
    ...(rows === "prompts" ? { compute_multiplier: asked.compute_multiplier ?? 1 } : {}),
  };
  const graded = rows === "prompts" ? { grader: asked.grader ?? null } : {};
  return {
    ...{ id: job.id, object: "fine_tuning.job", created_at: job.created_at, finished_at: job.finished_at, model: asked.model },
    ...{ fine_tuned_model: job.fine_tuned_model, organization_id: organization, status: job.status },
    ...{ training_file: asked.training_file, validation_file: asked.validation_file, hyperparameters: numbers },
    method: { type: asked.method, [asked.method]: { ...graded, hyperparameters: own } },
    result_files: job.result_file === null ? [] : [job.result_file],
    ...{ trained_tokens: job.trained_tokens, seed: asked.seed, error: job.error, estimated_finish: null, integrations: [] },
    ...{ metadata: asked.metadata, user_provided_suffix: asked.suffix === "" ? null : asked.suffix },
  };
}

const eventObject = ({ id, created_at, level, message, type, data }: EventRow) => ({
  ...{ id, object: "fine_tuning.job.event", created_at, level, message, type, data },
});

const checkpointObject = ({ id, created_at, step, model, metrics }: CheckpointRow, job: string) => ({
  ...{ id, object: "fine_tuning.job.checkpoint", created_at, fine_tuned_model_checkpoint: model, fine_tuning_job_id: job },
  ...{ step_number: step, metrics },
});

export type JobRoutesOptions = {
  readonly jobs: Jobs;
  readonly store: JobStore;
  readonly files: Files;
  readonly models: Models;
  readonly organization: string;
  readonly reinforcement: ServeTable["reinforcement"];
  /** Tokens of a job's row, at most. */
  readonly maxLength: number;
};

export function jobRoutes({ jobs, store, files, models, organization, reinforcement, maxLength }: JobRoutesOptions): Route[] {
  const answer = (job: JobRow) => Response.json(jobObject(job, organization));

  /** What a job learns from answers by. Throws ApiErrors. */
  const rewardedBy = ({ method, validation_file }: v.InferOutput<typeof CreateJob>) => {
    const of = method?.reinforcement;
    if (!of) throw badRequest("The method 'reinforcement' needs a grader.", "method.reinforcement");
    if (validation_file)
      throw badRequest("A validation file is not served with 'reinforcement': leave it out.", "validation_file");
    const { compute_multiplier: given, eval_interval, eval_samples } = of.hyperparameters ?? {};
    for (const [name, value] of Object.entries({ eval_interval, eval_samples }))
      if (typeof value === "number")
        throw badRequest(`'${name}' is of a validation file, which is not served with 'reinforcement'.`, `method.${name}`);
    const compute_multiplier = typeof given === "number" ? given : 1;
    const generations = Math.max(2, Math.round(reinforcement.generations * compute_multiplier));
    const { max_new_tokens = Math.max(1, Math.min(MOST_NEW_TOKENS, Math.floor(maxLength / 2))) } = reinforcement;
    return { grader: graderIn(of.grader, "method.reinforcement.grader"), generations, max_new_tokens, compute_multiplier };
  };

  const create = async ({ tenant, json, request }: Call): Promise<Response> => {
    const body = await json(CreateJob);
    const method = body.method?.type ?? "supervised";
    const given = body.method?.[method]?.hyperparameters;
    const rewarded = method === "reinforcement" ? rewardedBy(body) : {};
    if (given && body.hyperparameters)
      throw badRequest("'hyperparameters' and 'method' were both given: leave one out.", "hyperparameters");
    if (body.hyperparameters && body.method && method !== "supervised")
      throw badRequest(`'hyperparameters' is of supervised jobs: give 'method.${method}.hyperparameters'.`, "hyperparameters");
    models.find(tenant, body.model);
    const training = files.find(tenant, body.training_file, "training_file");
    const validation = body.validation_file ? files.find(tenant, body.validation_file, "validation_file") : null;
    for (const [param, file] of [
      ["training_file", training],
      ["validation_file", validation],
    ] as const)
      if (file && file.purpose !== "fine-tune")
        throw badRequest(
          `File ${file.id} has the purpose '${file.purpose}', expected 'fine-tune'.`,
          param,
          "invalid_file_purpose",
        );
    const numbers = (given ?? body.hyperparameters ?? {}) as v.InferOutput<typeof Dpo>;
    const { n_epochs, batch_size, learning_rate_multiplier, beta } = numbers;
    const asked = {
      ...hyperparametersFor(Math.max(1, training.lines), {
        n_epochs: n_epochs ?? "auto",
        batch_size: batch_size ?? "auto",
        learning_rate_multiplier: learning_rate_multiplier ?? "auto",
      }),
      ...{ model: body.model, training_file: training.id, validation_file: validation?.id ?? null, method, ...rewarded },
      beta: typeof beta === "number" ? beta : null,
      suffix: body.suffix ?? "",
      seed: body.seed ?? randomSeed(),
      metadata: body.metadata ?? null,
    };
    const job = jobs.create(tenant, asked, request.headers.get("idempotency-key"));
    for (const { type } of body.integrations ?? []) {
      const text = `The integration '${type}' is not served: events and the result file have all metrics`;
      store.event(job.id, text, { level: "warn" }, `integration ${type}`);
    }
    return answer(job);
  };

  const list = ({ tenant, query }: Call): Response => {
    const limit = limitOf(query, 20, 100);
    const wanted = [...query].flatMap(([key, value]) => {
      const name = /^metadata\[(.+)\]$/.exec(key)?.[1];
      return name === undefined ? [] : [[name, value] as const];
    });
    const isWanted = ({ asked: { metadata } }: JobRow) => wanted.every(([name, value]) => metadata?.[name] === value);
    const rows = store.list(tenant, query.get("after"), wanted.length > 0 ? -1 : limit + 1).filter(isWanted);
    return listOf(
      rows.slice(0, limit).map((row) => jobObject(row, organization)),
      rows.length > limit,
    );
  };

  /** A page of what belongs to a job. */
  const page =
    <Row, T extends { readonly id: string }>(
      usual: number,
      read: (job: string, after: string | null, limit: number) => Row[],
      object: (row: Row, job: string) => T,
    ) =>
    ({ tenant, query, params }: Call): Response => {
      const { id } = store.find(tenant, params["id"]!);
      const limit = limitOf(query, usual, 1000);
      const rows = read(id, query.get("after"), limit + 1);
      return listOf(
        rows.slice(0, limit).map((row) => object(row, id)),
        rows.length > limit,
      );
    };

  const path = "/v1/fine_tuning/jobs";
  return [
    { method: "POST", path, summary: "Create a fine-tuning job", handler: create, body: CreateJob },
    { method: "GET", path, summary: "List fine-tuning jobs", handler: list },
    {
      ...{ method: "GET", path: `${path}/:id`, summary: "Retrieve a fine-tuning job" },
      handler: ({ tenant, params }) => answer(store.find(tenant, params["id"]!)),
    },
    {
      ...{ method: "POST", path: `${path}/:id/cancel`, summary: "Cancel a fine-tuning job" },
      handler: async ({ tenant, params }) => answer(await jobs.cancel(tenant, params["id"]!)),
    },
    {
      ...{ method: "POST", path: `${path}/:id/pause`, summary: "Pause a fine-tuning job" },
      handler: async ({ tenant, params }) => answer(await jobs.pause(tenant, params["id"]!)),
    },
    {
      ...{ method: "POST", path: `${path}/:id/resume`, summary: "Resume a paused fine-tuning job" },
      handler: ({ tenant, params }) => answer(jobs.resume(tenant, params["id"]!)),
    },
    {
      ...{ method: "GET", path: `${path}/:id/events`, summary: "List events of a fine-tuning job" },
      handler: page(20, (job, after, limit) => store.events(job, after, limit), eventObject),
    },
    {
      ...{ method: "GET", path: `${path}/:id/checkpoints`, summary: "List checkpoints of a fine-tuning job" },
      handler: page(10, (job, after, limit) => store.checkpoints(job, after, limit), checkpointObject),
    },
  ];
}

// Graders of jobs that learn from answers: those that this server can compute, tried before a job is made.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { now } from "../../base/clock.ts";
import { faultsOf } from "../../recipe/faults.ts";
import { columnAt, columnsOf, GRADERS, type Grader, gradesFor, TooLong } from "../../session/rollouts/rewards.ts";
import { badRequest } from "../errors.ts";
import type { Route } from "../router.ts";

/** It is read once its kind is known to be served. */
export const GraderTable = v.looseObject({ type: v.string(expected("a string")) }, expected("a grader"));

/** Kinds of graders that are not served, and why. */
const UNSERVED: Readonly<Record<string, string>> = {
  python: "would run a client's program at the server",
  score_model: "asks another model",
  label_model: "asks another model",
};

/** A grader that this server can compute; `param` has it. Throws ApiErrors. */
export function graderIn(given: { readonly type: string }, param: string): Grader {
  const all = [given, ...Object.values((given as { graders?: Record<string, { readonly type?: unknown }> }).graders ?? {})];
  for (const { type } of all)
    if (typeof type === "string" && Object.hasOwn(UNSERVED, type))
      throw badRequest(
        `A grader of the type '${type}' ${UNSERVED[type]}, and is not served: use string_check, text_similarity or multi, or a reward of the server in a job of a recipe (mlora submit).`,
        param,
      );
  const types = Object.keys(GRADERS);
  if (!types.includes(given.type))
    throw badRequest(`A grader has the type '${given.type}', expected one of ${types.join(", ")}.`, `${param}.type`);
  const schema: v.GenericSchema<unknown, Grader> = GRADERS[given.type as keyof typeof GRADERS];
  const read = v.safeParse(schema, given);
  if (read.success) return read.output;
  const [fault] = faultsOf(read.issues[0]!, schema);
  throw badRequest(`'${[param, ...fault!.path].join(".")}' ${fault!.message}.`, param);
}

const Validate = v.object({ grader: GraderTable });
const Run = v.object({
  grader: GraderTable,
  model_sample: v.pipe(v.string(expected("a string")), v.maxLength(1 << 20)),
  item: v.nullish(v.record(v.string(), v.unknown(), expected("an object"))),
});

/** What a grader may fail with, of which only these can come to pass here. */
const ERRORS = {
  ...{ model_grader_parse_error: false, model_grader_refusal_error: false, model_grader_server_error: false },
  ...{ python_grader_runtime_error: false, python_grader_server_error: false, sample_parse_error: false },
  ...{ truncated_observation_error: false, unresponsive_reward_error: false, other_error: false },
};

/** Throws an ApiError where the texts are too long. */
function graded(...of: Parameters<typeof gradesFor>) {
  try {
    return gradesFor(...of);
  } catch (error) {
    throw error instanceof TooLong ? badRequest(`The grader has ${error.message}.`, "model_sample") : error;
  }
}

/** `client.fine_tuning.alpha.graders`. */
export function graderRoutes(): Route[] {
  const path = "/v1/fine_tuning/alpha/graders";
  return [
    {
      ...{ method: "POST", path: `${path}/validate`, summary: "Check a grader", body: Validate },
      handler: async ({ json }) => Response.json({ grader: graderIn((await json(Validate)).grader, "grader") }),
    },
    {
      ...{ method: "POST", path: `${path}/run`, summary: "Grade an answer", body: Run },
      handler: async ({ exact }) => {
        const { body, exact: written } = await exact(Run);
        const { grader: given, model_sample: output } = body;
        const item = written["item"] ?? {};
        const began = now();
        const grader = graderIn(given, "grader");
        const lacking = columnsOf(grader).find((column) => columnAt(item, column) === undefined);
        const grades = lacking === undefined ? graded(grader, { item, output }) : null;
        const isNumber = grades !== null && Number.isFinite(grades.grade);
        return Response.json({
          ...{ reward: isNumber ? grades.grade : 0, sub_rewards: grades?.parts ?? {}, model_grader_token_usage_per_model: {} },
          metadata: {
            errors: {
              ...ERRORS,
              invalid_variable_error: lacking !== undefined,
              formula_parse_error: lacking === undefined && !isNumber,
            },
            ...{
              name: grader.name,
              type: grader.type,
              scores: grades?.parts ?? {},
              sampled_model_name: null,
              token_usage: null,
            },
            execution_time: (now() - began) / 1000,
          },
        });
      },
    },
  ];
}

// Bodies of Tinker's requests in JSON.

import * as v from "valibot";
import { expected } from "../../base/check.ts";
import { checked, jsonIn } from "../body.ts";

const text = v.pipe(v.string(expected("a string")), v.maxLength(1024));
const whole = (least: number, most: number) =>
  v.pipe(v.number(expected("a number")), v.integer(), v.minValue(least), v.maxValue(most));
const number = v.pipe(v.number(expected("a number")), v.finite());
const metadata = v.nullish(v.record(v.string(), v.unknown()));
const sequence = whole(0, Number.MAX_SAFE_INTEGER);

/** Of the name of a checkpoint: it is part of a path. */
const checkpointName = v.pipe(
  v.string(expected("a string")),
  v.regex(/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}$/, "has other characters than a checkpoint's name may have"),
);
const [HOUR, TEN_YEARS] = [3600, 10 * 366 * 86_400];
const ttl = v.nullish(whole(HOUR, TEN_YEARS));

export const Addressed = v.object({ model_id: text, seq_id: whole(1, Number.MAX_SAFE_INTEGER) });
export const CreateSession = v.object({ user_metadata: metadata, display_name: v.nullish(text) });
export const SessionBody = v.object({ session_id: text });
const optimizerConfig = v.nullish(v.object({ type: v.nullish(v.literal("adamw", 'is not "adamw", the only one served')) }));
export const CreateModel = v.object({
  ...{ session_id: text, model_seq_id: sequence, base_model: text, user_metadata: metadata },
  lora_config: v.object({
    rank: whole(0, 2 ** 31 - 1),
    seed: v.nullish(whole(-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)),
    ...{ train_unembed: v.nullish(v.boolean()), train_mlp: v.nullish(v.boolean()), train_attn: v.nullish(v.boolean()) },
  }),
  optimizer_config: optimizerConfig,
});
export type CreateModel = v.InferOutput<typeof CreateModel>;
export const LoadAsNew = v.object({
  ...{ session_id: text, model_seq_id: sequence, path: text, optimizer: v.nullish(v.boolean()) },
  ...{ base_model: v.nullish(text), user_metadata: metadata, optimizer_config: optimizerConfig },
});
export const LoadInto = v.object({ path: text, optimizer: v.nullish(v.boolean()) });
export const MaybeSession = v.object({ session_id: v.nullish(text) });
export const ModelBody = v.object({ model_id: text });
export const OptimStep = v.object({
  adam_params: v.object(
    {
      learning_rate: v.nullish(number, 1e-4),
      ...{ beta1: v.nullish(number, 0.9), beta2: v.nullish(number, 0.95), eps: v.nullish(number, 1e-12) },
      ...{ weight_decay: v.nullish(number, 0), grad_clip_norm: v.nullish(number, 0) },
    },
    expected("a table: no other optimizer is served"),
  ),
});
export const SaveWeights = v.object({
  path: checkpointName,
  ttl_seconds: ttl,
  overwrite: v.nullish(v.boolean()),
  user_metadata: metadata,
  age_encryption_recipients: v.nullish(v.pipe(v.array(v.unknown()), v.maxLength(0, "is not served: leave it out"))),
});
export type SaveWeights = v.InferOutput<typeof SaveWeights>;
export const SaveForSampler = v.object({
  path: v.nullish(checkpointName),
  sampling_session_seq_id: v.nullish(sequence),
  ...{ ttl_seconds: ttl, user_metadata: metadata, overwrite: v.nullish(v.boolean()) },
});
/**
 * What is the same in each repeat of a request to save weights, for which Tinker's client takes a new number of a sampler each
 * time that it sends it; null where it takes none. Throws an ApiError.
 */
export function repeatsOf(kind: string, body: Uint8Array): string | null {
  if (kind !== "save_weights_for_sampler") return null;
  const { sampling_session_seq_id: number, ...same } = read(v.record(v.string(), v.unknown()), body);
  return number == null ? null : JSON.stringify(same);
}

export const CreateSampler = v.object({
  ...{ session_id: text, sampling_session_seq_id: sequence },
  ...{ base_model: v.nullish(text), model_path: v.nullish(text) },
});

const ids = v.array(whole(0, 2 ** 31 - 1));
export const SampleAddress = v.object({
  sampling_session_id: text,
  seq_id: sequence,
  num_samples: v.nullish(whole(1, 1024), 1),
});
export const Sample = v.object({
  num_samples: v.nullish(whole(1, 1024), 1),
  prompt: v.object({
    chunks: v.array(
      v.object({ type: v.literal("encoded_text", "is no text; only texts are served"), tokens: ids }, expected("a chunk")),
    ),
  }),
  sampling_params: v.object({
    max_tokens: v.nullish(whole(1, 2 ** 31 - 1)),
    seed: v.nullish(whole(-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)),
    stop: v.nullish(v.union([v.string(), v.array(v.string()), ids], expected("a text, texts or tokens"))),
    temperature: v.nullish(v.pipe(number, v.minValue(0)), 1),
    top_k: v.nullish(whole(-1, 2 ** 31 - 1), -1),
    top_p: v.nullish(v.pipe(number, v.gtValue(0), v.maxValue(1)), 1),
  }),
  prompt_logprobs: v.nullish(v.boolean(), false),
  prompt_logprobs_last_n: v.nullish(whole(1, 2 ** 31 - 1)),
  topk_prompt_logprobs: v.nullish(whole(0, 1024), 0),
  topk_sample_logprobs: v.nullish(whole(0, 1024), 0),
  target_prompt_logprobs: v.nullish(
    v.object({
      ...{ data: v.array(number), dtype: v.picklist(["int64", "float32"]), shape: v.nullish(v.array(sequence)) },
      ...{ sparse_crow_indices: v.nullish(v.array(sequence)), sparse_col_indices: v.nullish(v.array(sequence)) },
    }),
  ),
  prompt_alt_tokens_k: v.nullish(v.literal(0, "is not served: leave it out"), 0),
  record_stability_info: v.nullish(v.literal(false, "is not served: leave it out")),
});
export type Sample = v.InferOutput<typeof Sample>;
export const RetrieveFuture = v.object({ request_id: text });
export const TinkerPath = v.object({ tinker_path: text });
export const Ttl = v.object({ ttl_seconds: ttl });

/** JSON that was taken as it came. Throws an ApiError. */
export const read = <S extends v.GenericSchema>(schema: S, body: Uint8Array): v.InferOutput<S> => checked(schema, jsonIn(body));

// Tinker's protocol: sessions, models that are trained request by request, and samples.

import { WireFault } from "../../base/protobuf.ts";
import { randomSeed } from "../../base/secret.ts";
import { badRequest } from "../errors.ts";
import type { Call, Handler, Route } from "../router.ts";
import {
  Addressed,
  CreateModel,
  CreateSampler,
  CreateSession,
  LoadAsNew,
  MaybeSession,
  ModelBody,
  RetrieveFuture,
  read,
  SessionBody,
} from "./asked.ts";
import { samplerId } from "./checkpoints.ts";
import { hubName } from "./hub.ts";
import { addressOf, PROTOBUF } from "./messages.ts";
import type { Tinker } from "./tinker.ts";

/** Answers to `client/config`: they put older clients on the protocol of the newer ones. */
const FLAGS = { proto_write_fwdbwd: true, fwd_via_fwdbwd: true, create_model_via_load_weights: true };
const HEAD = "Only linear layers are trained: the output head (train_unembed) has no adapter.";

const route = (method: Route["method"], path: string, summary: string, handler: Handler, more: Partial<Route> = {}): Route => {
  return { method, path: `/api/v1/${path}`, summary, handler, ...more };
};

export function tinkerRoutes({ store, sessions, training, samples, futures, checkpoints, base }: Tinker): Route[] {
  const future = (id: string, model?: string) => Response.json({ request_id: id, ...(model ? { model_id: model } : {}) });

  const checkBase = (name: string) => {
    if (name !== base.name) throw badRequest(`The base model '${name}' is not served, only '${base.name}'.`, "base_model");
  };
  const modelId = (session: string, number: number) => `${session}:train:${number}`;

  const createModel = async ({ tenant, bytes }: Call): Promise<Response> => {
    const body = await bytes();
    const { session_id, model_seq_id, base_model, lora_config: of, user_metadata = null } = read(CreateModel, body);
    checkBase(base_model);
    store.openSession(tenant, session_id);
    if (of.rank === 0)
      throw badRequest("'lora_config.rank' is 0: all weights cannot be trained, only a LoRA.", "lora_config.rank");
    const asked = {
      ...{ rank: of.rank, seed: of.seed == null ? randomSeed() : Number(BigInt.asUintN(32, BigInt(of.seed))) },
      ...{ attention: of.train_attn ?? true, mlp: of.train_mlp ?? true, from: null, user_metadata },
    };
    if (!asked.attention && !asked.mlp)
      throw badRequest("'lora_config' leaves only the output head, which has no adapter here.", "lora_config");
    const id = modelId(session_id, model_seq_id);
    return future(training.create({ id, tenant, session: session_id, asked }, "create_model", body), id);
  };

  const loadWeights = async (call: Call): Promise<Response> => {
    const { tenant } = call;
    const body = await call.bytes();
    if (read(MaybeSession, body).session_id == null) return submit("load_weights", body, call);
    const { session_id, model_seq_id, path, optimizer, base_model, user_metadata = null } = read(LoadAsNew, body);
    store.openSession(tenant, session_id);
    if (base_model != null) checkBase(base_model);
    const found = store.checkpoint(tenant, path);
    checkpoints.checkLoads(found, null);
    const from = { folder: found.folder, optimizer: optimizer === true };
    const id = modelId(session_id, model_seq_id);
    const asked = { ...found.asked, from, user_metadata };
    return future(training.create({ id, tenant, session: session_id, asked }, "load_weights", body), id);
  };

  const submit = (kind: string, body: Uint8Array, { tenant }: Call): Response => {
    const { model_id, seq_id } = read(Addressed, body);
    return future(training.submit(tenant, model_id, seq_id, kind, body), model_id);
  };
  const submitting =
    (kind: string): Handler =>
    async (call) =>
      submit(kind, await call.bytes(), call);

  const forwardBackward = async ({ request, tenant, bytes }: Call): Promise<Response> => {
    if (request.headers.get("content-type") !== PROTOBUF)
      throw badRequest(`Expected a body of the type ${PROTOBUF}: older clients need the answer to client/config.`);
    const body = await bytes();
    try {
      const { model, number } = addressOf(body);
      if (number < 1) throw badRequest(`'seq_id' is ${number}, expected 1 or more.`, "seq_id");
      return future(training.submit(tenant, model, number, "forward_backward", body), model);
    } catch (error) {
      throw error instanceof WireFault ? badRequest(`The message ${error.message}.`) : error;
    }
  };

  const getInfo = async ({ tenant, json }: Call): Promise<Response> => {
    const { id, asked } = store.model(tenant, (await json(ModelBody)).model_id);
    return Response.json({
      ...{ type: "get_info", model_id: id, model_name: base.name, is_lora: true, lora_rank: asked.rank },
      model_data: { arch: base.architecture, model_name: base.name, tokenizer_id: hubName(base.name) },
      optimizer_config: { type: "adamw" },
    });
  };

  const createSampler = async ({ tenant, json }: Call): Promise<Response> => {
    const { session_id, sampling_session_seq_id, base_model, model_path } = await json(CreateSampler);
    store.openSession(tenant, session_id);
    if (base_model == null && model_path == null) throw badRequest("Give 'base_model' or 'model_path'.", "model_path");
    if (base_model != null) checkBase(base_model);
    if (model_path != null && store.checkpoint(tenant, model_path).kind !== "sampler_weights")
      throw badRequest(`'${model_path}' are no weights to sample from: save them for a sampler.`, "model_path");
    const id = samplerId(session_id, sampling_session_seq_id);
    const of = { model: model_path ?? null, path: model_path ?? null, source: null };
    store.addSampler({ id, tenant, session: session_id, ...of });
    if (store.sampler(tenant, id).model !== of.model)
      throw badRequest(`The sampler '${id}' is there already.`, "sampling_session_seq_id");
    return Response.json({ type: "create_sampling_session", sampling_session_id: id });
  };

  const sample = async ({ tenant, bytes }: Call): Promise<Response> => {
    const { id, samples: count } = samples.submit(tenant, await bytes(), randomSeed());
    const ids = Array.from({ length: count }, (_, i) => `${id}:${i}`);
    return Response.json({ request_id: id, sample_sequence_ids: ids });
  };

  return [
    route("GET", "healthz", "Whether the server answers", () => Response.json({ status: "ok" }), { isOpen: true }),
    route("POST", "client/config", "What clients do by default", () => Response.json(FLAGS)),
    route("POST", "client/dynamic_config", "The same, asked again", () => Response.json({})),
    route("POST", "telemetry", "Taken, and kept nowhere", async ({ bytes }) => {
      await bytes();
      return Response.json({ status: "accepted" });
    }),
    route(
      ...(["POST", "create_session", "Begin a session"] as const),
      async ({ tenant, json }) => {
        const { user_metadata = null, display_name = null } = await json(CreateSession);
        const id = sessions.create(tenant, { user_metadata, display_name });
        return Response.json({ type: "create_session", session_id: id, warning_message: HEAD });
      },
      { body: CreateSession },
    ),
    route("POST", "session_heartbeat", "Tell that a session is there", async ({ tenant, json }) => {
      sessions.heard(tenant, (await json(SessionBody)).session_id);
      return Response.json({ type: "session_heartbeat" });
    }),
    route("POST", "sessions/:id/finish", "End a session", async ({ tenant, params }) => {
      const { id, ended_at } = store.session(tenant, params["id"]!);
      if (ended_at === null) await sessions.finish(id);
      return Response.json({});
    }),
    route("POST", "create_model", "A LoRA to train", createModel, { body: CreateModel }),
    route("POST", "load_weights", "The same from saved weights", loadWeights),
    route("POST", "get_info", "What a model is", getInfo, { body: ModelBody }),
    route("POST", "forward_backward", "Losses of rows, and their gradients", forwardBackward),
    ...["optim_step", "save_weights", "save_weights_for_sampler", "save_weights_external"].map((kind) =>
      route("POST", kind, `${kind.replaceAll("_", " ")}, in a model's order`, submitting(kind)),
    ),
    route("POST", "unload_model", "Let go of a model", async ({ tenant, bytes }) => {
      const body = await bytes();
      const { model_id } = read(ModelBody, body);
      return future(await training.unload(tenant, model_id, body), model_id);
    }),
    route("POST", "create_sampling_session", "Weights to sample from", createSampler, { body: CreateSampler }),
    route("GET", "samplers/:id", "What a sampler is", ({ tenant, params }) => {
      const { id, path } = store.sampler(tenant, params["id"]!);
      return Response.json({ sampler_id: id, base_model: base.name, ...(path === null ? {} : { model_path: path }) });
    }),
    route("POST", "asample", "Sample, or score a prompt", sample),
    route(
      ...(["POST", "retrieve_future", "The result of a request, waited for"] as const),
      async ({ tenant, json, request }) => futures.retrieve(tenant, (await json(RetrieveFuture)).request_id, request.signal),
      { body: RetrieveFuture, isPoll: true },
    ),
  ];
}

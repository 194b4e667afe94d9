// What Tinker's command line and its REST client ask for: models as training runs, their checkpoints, sessions, and files of
// weights, by addresses that end after a while and need no key.

import { createHmac, timingSafeEqual } from "node:crypto";
import { join } from "node:path";
import { wallTime } from "../../base/clock.ts";
import { randomToken } from "../../base/secret.ts";
import { badRequest, notFound } from "../errors.ts";
import { seconds } from "../files.ts";
import { type Call, limitOf, type Route } from "../router.ts";
import { TinkerPath, Ttl } from "./asked.ts";
import { filesIn } from "./checkpoints.ts";
import { CHECKPOINT_KINDS, type CheckpointRow, type ModelRow, pathOf } from "./store.ts";
import type { Tinker } from "./tinker.ts";

/** How long an address of a file holds, in seconds. */
const HOLDS = 3600;

const timeOf = (at: number): string => new Date(1000 * at).toISOString();

export function tinkerRestRoutes({ store, checkpoints, base }: Tinker): Route[] {
  /** Addresses are signed by what only this server knows, and end with it. */
  const secret = randomToken();
  const signed = (text: string) => createHmac("sha256", secret).update(text).digest();

  const checkpointObject = (row: CheckpointRow) => ({
    ...{ checkpoint_id: `${row.kind}/${row.name}`, checkpoint_type: CHECKPOINT_KINDS[row.kind], tinker_path: pathOf(row) },
    ...{ time: timeOf(row.created_at), size_bytes: row.bytes, public: row.is_public === 1, user_metadata: row.metadata },
    expires_at: row.expires_at === null ? null : timeOf(row.expires_at),
  });

  const runObject = ({ id, tenant, asked, asked_at }: ModelRow) => {
    const all = store.checkpoints({ model: id });
    const last = (kind: CheckpointRow["kind"]) => {
      const found = all.find((row) => row.kind === kind);
      return found ? checkpointObject(found) : null;
    };
    return {
      ...{ training_run_id: id, base_model: base.name, model_owner: tenant, is_lora: true, corrupted: false },
      ...{ lora_rank: asked.rank, last_request_time: timeOf(asked_at), user_metadata: asked.user_metadata },
      ...{ last_checkpoint: last("weights"), last_sampler_checkpoint: last("sampler_weights") },
    };
  };

  /** A page of a list, newest first. */
  const paged = <T>(
    { query }: Call,
    name: string,
    fallback: number,
    all: readonly T[],
    object: (of: T) => unknown,
  ): Response => {
    const limit = limitOf(query, fallback, 1000);
    const offset = Number(query.get("offset") ?? 0);
    if (!Number.isInteger(offset) || offset < 0)
      throw badRequest(`'offset' is ${query.get("offset")}, expected 0 or more.`, "offset");
    const page = all.slice(offset, offset + limit).map(object);
    return Response.json({ [name]: page, cursor: { offset, limit, total_count: all.length } });
  };

  /** By the path after the model: KIND/NAME. */
  const checkpointAt = ({ tenant, params }: Call): CheckpointRow =>
    store.checkpoint(tenant, `tinker://${params["id"]}/${params["kind"]}/${params["name"]}`, false);

  const weightsInfo = async ({ tenant, json }: Call): Promise<Response> => {
    const { asked } = store.checkpoint(tenant, (await json(TinkerPath)).tinker_path);
    return Response.json({
      ...{ base_model: base.name, is_lora: true, lora_rank: asked.rank, optimizer_config: { type: "adamw" } },
      ...{ train_unembed: false, train_mlp: asked.mlp, train_attn: asked.attention },
    });
  };

  const externalUrls = (call: Call): Response => {
    const row = checkpointAt(call);
    if (row.kind !== "external_weights") throw badRequest(`'${pathOf(row)}' are no external weights.`, "path");
    const { origin } = new URL(call.request.url);
    const host = call.request.headers.get("host");
    const ends = seconds() + HOLDS;
    const urls = filesIn(row.folder).map((file) => {
      const text = `${row.model}/${row.name}/${file}/${ends}`;
      const address = `${row.model}/${row.name}/${file}?ends=${ends}&signature=${signed(text).toString("hex")}`;
      return [file, `${host ? `${origin.split("//")[0]}//${host}` : origin}/api/v1/external_weights/${address}`] as const;
    });
    return Response.json({ urls: Object.fromEntries(urls), expires: timeOf(ends) });
  };

  const externalFile = ({ params, query }: Call): Response => {
    const { id, name, file } = params as { id: string; name: string; file: string };
    const missing = notFound("There is no such file, or its address has ended.");
    const ends = Number(query.get("ends"));
    const given = Buffer.from(query.get("signature") ?? "", "hex");
    const expected = signed(`${id}/${name}/${file}/${ends}`);
    if (given.length !== expected.length || !timingSafeEqual(given, expected) || !(ends > wallTime() / 1000)) throw missing;
    const row = store.knownCheckpoint(id, "external_weights", name);
    if (!row || !filesIn(row.folder).includes(file)) throw missing;
    return new Response(Bun.file(join(row.folder, file)));
  };

  const sessionObject = (tenant: string, id: string) => {
    const { asked } = store.session(tenant, id);
    const ids = store.models({ tenant, session: id }).map((row) => row.id);
    return { training_run_ids: ids, sampler_ids: store.samplers(id).map((row) => row.id), ...asked };
  };

  const setPublic =
    (isPublic: boolean) =>
    (call: Call): Response => {
      store.setPublic(checkpointAt(call), isPublic);
      return new Response(null, { status: 204 });
    };
  const at = "/api/v1/training_runs/:id/checkpoints/:kind/:name";

  return [
    {
      ...{ method: "GET", path: "/api/v1/get_server_capabilities", summary: "The base model" },
      handler: () => {
        const model = { model_name: base.name, max_context_length: base.context, trainable: true, sampleable: true };
        return Response.json({ supported_models: [model] });
      },
    },
    {
      ...{ method: "GET", path: "/api/v1/training_runs", summary: "Models that were trained" },
      handler: (call) => paged(call, "training_runs", 20, store.models({ tenant: call.tenant }), runObject),
    },
    {
      ...{ method: "GET", path: "/api/v1/training_runs/:id", summary: "One of them" },
      handler: ({ tenant, params }) => Response.json(runObject(store.model(tenant, params["id"]!))),
    },
    {
      ...{ method: "GET", path: "/api/v1/training_runs/:id/checkpoints", summary: "Its weights" },
      handler: (call) => {
        const { id } = store.model(call.tenant, call.params["id"]!);
        return paged(call, "checkpoints", 1000, store.checkpoints({ model: id }), checkpointObject);
      },
    },
    {
      ...{ method: "GET", path: "/api/v1/checkpoints", summary: "Weights of all" },
      handler: (call) => paged(call, "checkpoints", 100, store.checkpoints({ tenant: call.tenant }), checkpointObject),
    },
    {
      ...{ method: "DELETE", path: at, summary: "Delete weights" },
      handler: async (call) => {
        await checkpoints.remove(checkpointAt(call));
        return new Response(null, { status: 204 });
      },
    },
    { method: "POST", path: `${at}/publish`, summary: "Let all keys read weights", handler: setPublic(true) },
    { method: "DELETE", path: `${at}/publish`, summary: "And no longer", handler: setPublic(false) },
    {
      ...{ method: "PUT", path: `${at}/ttl`, summary: "When weights are deleted", body: Ttl },
      handler: async (call) => {
        const row = checkpointAt(call);
        const { ttl_seconds } = await call.json(Ttl);
        store.setExpiry(row, ttl_seconds == null ? null : seconds() + ttl_seconds);
        return new Response(null, { status: 204 });
      },
    },
    { method: "GET", path: `${at}/external_weights_urls`, summary: "Addresses of files of weights", handler: externalUrls },
    {
      ...{ method: "GET", path: "/api/v1/external_weights/:id/:name/:file+", summary: "Such a file", isOpen: true },
      handler: externalFile,
    },
    { method: "POST", path: "/api/v1/weights_info", summary: "What weights are", handler: weightsInfo, body: TinkerPath },
    {
      ...{ method: "GET", path: "/api/v1/sessions", summary: "Sessions" },
      handler: (call) => paged(call, "sessions", 20, store.sessions(call.tenant), ({ id }) => id),
    },
    {
      ...{ method: "GET", path: "/api/v1/sessions/:id", summary: "One of them" },
      handler: ({ tenant, params }) => Response.json(sessionObject(tenant, params["id"]!)),
    },
  ];
}

// The server as an object: opened with its folder, its stages and its port, and closed with all of them.

import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { onAbort } from "../base/abort.ts";
import { sleep } from "../base/clock.ts";
import { VERSION } from "../base/version.ts";
import { openTextModel } from "../session/generation/text-model.ts";
import { capacityRecipe } from "../session/primitives/capacity.ts";
import { openPrimitives } from "../session/primitives/open.ts";
import type { Primitives } from "../session/primitives/primitives.ts";
import { Tracer } from "../session/tracing/trace.ts";
import { adapterRoutes } from "./adapters.ts";
import type { ServeConfig } from "./config.ts";
import { isFatal } from "./errors.ts";
import { Files } from "./files.ts";
import { RecipeMaker } from "./job-recipe.ts";
import { JobPages } from "./job-source.ts";
import { JobStore } from "./job-store.ts";
import { Jobs } from "./jobs.ts";
import { type Keys, openKeys } from "./keys.ts";
import { startListening, urlOf } from "./listen.ts";
import { Counters } from "./metrics.ts";
import { Models } from "./models.ts";
import { chatRoutes } from "./openai/chat.ts";
import { completionRoutes } from "./openai/completions.ts";
import { fileRoutes } from "./openai/files.ts";
import { graderRoutes } from "./openai/graders.ts";
import { jobRoutes } from "./openai/jobs.ts";
import { modelRoutes } from "./openai/models.ts";
import { openApi } from "./openapi.ts";
import { pageRoutes } from "./page.ts";
import { Rates } from "./rates.ts";
import { recipeJobRoutes } from "./recipe-jobs.ts";
import { type Route, Router } from "./router.ts";
import { Database } from "./store.ts";
import { hubRoutes } from "./tinker/hub.ts";
import { tinkerRestRoutes } from "./tinker/rest.ts";
import { tinkerRoutes } from "./tinker/routes.ts";
import { Tinker } from "./tinker/tinker.ts";
import { Usage, usageCsv } from "./usage.ts";

/** Time that answers under way have when the server stops, in ms. */
const GRACE_MS = 10_000;

export type Server = AsyncDisposable & {
  readonly url: string;
  /** What clients call the base model. */
  readonly model: string;
  /** A key that was made now; null where there were keys. */
  readonly key: string | null;
  /** What the model is computed on. */
  readonly device: string;
  /** Rejects when the stages are lost; never resolves. */
  readonly lost: Promise<never>;
};

/** Opens all of it; jobs that an earlier server left continue. Throws RequestErrors before weights are read where it can. */
export async function openServer(config: ServeConfig, signal: AbortSignal): Promise<Server> {
  const { folder, listen, tls, server: own, limits, capacity, reinforcement } = config;
  await using opened = new AsyncDisposableStack();
  const recipes = new RecipeMaker(config);
  const texts = openTextModel(config.base);
  const db = opened.use(new Database(folder));
  const keys = openKeys(db, own.keys);
  const files = new Files(db, folder, limits);
  const engine = opened.use(await openEngine(config, recipes, keys, signal));
  const jobsFolder = join(folder, "jobs");
  mkdirSync(jobsFolder, { recursive: true });

  const base = { name: config.name, created_at: Math.floor(statSync(config.base).mtimeMs / 1000), folder: config.base };
  const models = new Models(db, engine, recipes, base, capacity.loaded);
  const usage = new Usage(db);
  const store = new JobStore(db);
  const counters = new Counters();
  const lost = Promise.withResolvers<never>();
  lost.promise.catch(() => undefined);
  const failed = (error: unknown) => {
    if (isFatal(error)) lost.reject(error);
  };
  if (engine.lost) opened.use(onAbort(engine.lost, () => failed(engine.lost!.reason)));
  const { organization } = own;
  const log: Router["log"] = (event, more) => router.log(event, more);
  const jobs = new Jobs({
    ...{ engine, store, files, models, usage, recipes, folder: jobsFolder, organization },
    ...{ saveSeconds: config.jobs.save_seconds, checkpoints: config.jobs.checkpoints, rows: limits.rows },
    ...{ atOnce: config.jobs.at_once ?? capacity.slots, most: limits.jobs },
    log,
    lost: failed,
  });
  const rates = new Rates(limits.tokens_per_minute ?? null);
  const tinker = new Tinker({ db, config, engine, models, recipes, texts, usage, rates, log, lost: failed });
  const answers = { engine, models, texts, usage, rates };
  const pages = new JobPages({ engine, store, jobs, answers, title: config.name, tracer: await Tracer.open(engine.bus) });
  const routes: Route[] = [
    ...fileRoutes(files, limits),
    ...jobRoutes({ jobs, store, files, models, organization, reinforcement, maxLength: recipes.maxLength }),
    ...graderRoutes(),
    ...recipeJobRoutes({ jobs, files, recipes, config }),
    ...modelRoutes(models, organization),
    ...chatRoutes(answers),
    ...completionRoutes(answers),
    ...tinkerRoutes(tinker),
    ...tinkerRestRoutes(tinker),
    ...hubRoutes(tinker.base, texts.folder),
    ...(config.adapters.folder === undefined ? [] : adapterRoutes(models, config.adapters.folder)),
    ...operatorRoutes(usage, counters),
    ...pageRoutes({ sourceOf: (tenant) => pages.sourceOf(tenant), viewKeyOf: keys.viewKeyOf }),
  ];
  routes.push({
    ...{ method: "GET", path: "/openapi.json", summary: "This document", isOpen: true },
    handler: () => Response.json(openApi(routes)),
  });
  const bodies = { bytes: limits.body_bytes, seconds: limits.body_seconds, requests: limits.requests };
  const router = new Router(routes, { keys, counters, limits: bodies, log: own.log, failed });
  addGauges(counters, { engine, store, usage });

  const listening = startListening({ listen, tls }, router);
  opened.defer(async () => {
    router.isClosing = true;
    pages[Symbol.dispose]();
    const halted = Promise.all([jobs.stop(), tinker.stop()]);
    await Promise.race([listening.stop(), sleep(GRACE_MS)]);
    await listening.stop(true);
    await halted;
  });
  jobs.begin();
  tinker.begin();
  const closing = opened.move();
  return {
    url: urlOf({ listen, tls }, listening.port!),
    model: config.name,
    key: keys.made,
    device: engine.plan.device.name,
    lost: lost.promise,
    [Symbol.asyncDispose]: () => closing.disposeAsync(),
  };
}

/** Stages for the largest adapters that may come. Jobs' adapters are tried once, so that a config's fault shows now. */
async function openEngine(
  config: ServeConfig,
  recipes: RecipeMaker,
  { weightOf }: Keys,
  signal: AbortSignal,
): Promise<Primitives> {
  const { capacity, base, model, run, folder } = config;
  const asked = { model: { path: base, precision: model.precision }, run: { output: join(folder, "run"), ...run } };
  const sizes = { ...capacity, maxLength: capacity.max_length, batchSize: capacity.batch_size };
  const recipe = capacityRecipe(sizes, { ...asked, path: join(folder, "capacity.toml") });
  const cache = { sequences: capacity.sequences, capacity: capacity.max_length };
  await using opened = new AsyncDisposableStack();
  const engine = opened.use(await openPrimitives(recipe, { cache, signal, isEmpty: true, isBusy: true, weightOf }));
  await engine.add(recipes.ofSaved("probe", {}));
  await engine.remove("probe");
  opened.move();
  return engine;
}

function operatorRoutes(usage: Usage, counters: Counters): Route[] {
  return [
    {
      ...{ method: "GET", path: "/healthz", summary: "Whether the server answers", isOpen: true },
      handler: () => Response.json({ status: "ok", version: VERSION }),
    },
    {
      ...{ method: "GET", path: "/metrics", summary: "Counts for Prometheus" },
      handler: () => new Response(counters.text, { headers: { "content-type": "text/plain; version=0.0.4" } }),
    },
    {
      ...{ method: "GET", path: "/v1/usage", summary: "What the key has used, by model and day; format=csv for a table" },
      handler: ({ tenant, query }) => {
        const rows = usage.of(tenant);
        if (query.get("format") === "csv") return new Response(usageCsv(rows), { headers: { "content-type": "text/csv" } });
        return Response.json({ object: "list", data: rows });
      },
    },
  ];
}

function addGauges(counters: Counters, { engine, store, usage }: { engine: Primitives; store: JobStore; usage: Usage }): void {
  counters.add({
    ...{ name: "mlora_jobs", help: "Fine-tuning jobs by status." },
    values: () => store.counts.map(({ status, jobs }) => [`status="${status}"`, jobs] as const),
  });
  counters.add({
    ...{ name: "mlora_adapters", help: "Adapters that train or are at hand." },
    values: () => [["", engine.adapters.length]],
  });
  const kinds = ["prompt_tokens", "completion_tokens", "trained_tokens"] as const;
  counters.add({
    ...{ name: "mlora_tokens_total", help: "Tokens of all keys." },
    values: () => kinds.map((kind) => [`kind="${kind}"`, usage.totals.reduce((sum, of) => sum + of[kind], 0)] as const),
  });
}

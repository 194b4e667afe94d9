// MLflow's server, as its REST API has it (2.0, of MLflow 2 and 3), where the environment says, in the words of its own client.

import * as v from "valibot";
import { environment } from "../../base/env.ts";
import { RequestError, RunError } from "../../base/errors.ts";
import { VERSION } from "../../base/version.ts";
import { ask, shown } from "../../sources/http.ts";

/** Where runs go. */
export type MlflowServer = {
  /** The address without what may be secret in it. */
  readonly url: string;
  /** An experiment's name, or its id. */
  readonly experiment: { readonly name: string } | { readonly id: string };
  readonly authorization: string | null;
};

type Metric = { readonly key: string; readonly value: number; readonly timestamp: number; readonly step: number };
type Text = { readonly key: string; readonly value: string };

/** What a request of log-batch may hold. */
export const MOST = { metrics: 1000, params: 100 } as const;

/** The server of MLFLOW_TRACKING_URI; null where it is not set. Throws a RequestError, `mlflow.address`. */
export function mlflowServer(): MlflowServer | null {
  const uri = environment("MLFLOW_TRACKING_URI");
  if (uri === undefined) return null;
  const wrong = (what: string, hint: string) => new RequestError("mlflow.address", `MLFLOW_TRACKING_URI: ${what}`, hint);
  const use = "give the address of an MLflow server, such as http://127.0.0.1:5000, or unset it and send later: mlora sync";
  if (!/^https?:\/\//.test(uri) || !URL.canParse(uri)) throw wrong("expected an http or https address", use);
  const url = new URL(uri);
  const token = environment("MLFLOW_TRACKING_TOKEN");
  const user = environment("MLFLOW_TRACKING_USERNAME") ?? decodeURIComponent(url.username);
  const password = environment("MLFLOW_TRACKING_PASSWORD") ?? decodeURIComponent(url.password);
  const basic = user === "" ? null : `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
  const authorization = basic ?? (token === undefined ? null : `Bearer ${token}`);
  const isHere = /^(localhost|127\.0\.0\.1|\[::1\])$/.test(url.hostname);
  if (authorization !== null && url.protocol === "http:" && !isHere)
    throw wrong("a token or a password would go to another machine without encryption", "use an https address");
  const id = environment("MLFLOW_EXPERIMENT_ID");
  const experiment = id === undefined ? { name: environment("MLFLOW_EXPERIMENT_NAME") ?? "mlora" } : { id };
  return { url: shown(uri).replace(/\/+$/, ""), experiment, authorization };
}

const failure = v.object({ error_code: v.string(), message: v.string() });
const withRun = v.object({ run: v.object({ info: v.object({ run_id: v.string() }) }) });
const withRuns = v.object({ runs: v.optional(v.array(withRun.entries.run), []) });
const withExperiment = v.object({ experiment: v.object({ experiment_id: v.string() }) });
const withId = v.object({ experiment_id: v.string() });

/** The server refuses this request, and would again. */
export class MlflowRefusal extends RunError {}

/** Requests; each throws a RunError, `mlflow.failed`, or an MlflowRefusal where it would be refused again. */
export class MlflowClient {
  #experiment: string | null = null;

  constructor(
    private readonly server: MlflowServer,
    private readonly signal: AbortSignal,
  ) {}

  /** The run with the tag `id`; made where there is none. */
  async run(about: { readonly id: string; readonly name: string; readonly began: number }): Promise<string> {
    const experiment = await this.#experimentId();
    const filter = `tags.\`mlora.id\` = '${about.id}'`;
    const search = { experiment_ids: [experiment], filter, run_view_type: "ALL", max_results: 1 };
    const [found] = v.parse(withRuns, await this.#post("runs/search", search)).runs;
    if (found) return found.info.run_id;
    const tags: Text[] = [
      { key: "mlora.id", value: about.id },
      { key: "mlora.version", value: VERSION },
      { key: "mlflow.source.name", value: "mlora" },
      { key: "mlflow.source.type", value: "LOCAL" },
    ];
    const asked = { experiment_id: experiment, run_name: about.name, start_time: about.began, tags };
    return v.parse(withRun, await this.#post("runs/create", asked)).run.info.run_id;
  }

  /** Numbers and settings of a run, in as many requests as they take. The same ones again change nothing. */
  async log(run: string, metrics: readonly Metric[], params: readonly Text[]): Promise<void> {
    for (let at = 0; at < params.length; at += MOST.params)
      await this.#post("runs/log-batch", { run_id: run, params: params.slice(at, at + MOST.params) });
    for (let at = 0; at < metrics.length; at += MOST.metrics)
      await this.#post("runs/log-batch", { run_id: run, metrics: metrics.slice(at, at + MOST.metrics) });
  }

  async status(run: string, status: string, time: number): Promise<void> {
    await this.#post("runs/update", { run_id: run, status, ...(status === "RUNNING" ? {} : { end_time: time }) });
  }

  async #experimentId(): Promise<string> {
    const { experiment } = this.server;
    if ("id" in experiment) return experiment.id;
    this.#experiment ??= (await this.#named(experiment.name)) ?? (await this.#created(experiment.name));
    return this.#experiment;
  }

  async #named(name: string): Promise<string | null> {
    const path = `experiments/get-by-name?experiment_name=${encodeURIComponent(name)}`;
    const answer = await this.#ask(path, {});
    if (answer.fault?.error_code === "RESOURCE_DOES_NOT_EXIST") return null;
    return v.parse(withExperiment, this.#good(path, answer)).experiment.experiment_id;
  }

  async #created(name: string): Promise<string> {
    const path = "experiments/create";
    const answer = await this.#ask(path, { method: "POST", body: JSON.stringify({ name }) });
    if (answer.fault?.error_code === "RESOURCE_ALREADY_EXISTS") {
      const found = await this.#named(name); // another run has just made it
      if (found !== null) return found;
    }
    return v.parse(withId, this.#good(path, answer)).experiment_id;
  }

  async #post(path: string, body: object): Promise<unknown> {
    return this.#good(path, await this.#ask(path, { method: "POST", body: JSON.stringify(body) }));
  }

  async #ask(path: string, options: { readonly method?: "POST"; readonly body?: string }) {
    const { url, authorization } = this.server;
    const headers = { "content-type": "application/json", ...(authorization === null ? {} : { authorization }) };
    const { signal } = this;
    const { response } = await ask(`${url}/api/2.0/mlflow/${path}`, { ...options, headers, away: false, signal });
    const text = await response.text();
    const json = jsonOf(text);
    const fault = response.ok ? null : v.safeParse(failure, json);
    return { status: response.status, json, fault: fault?.success ? fault.output : null };
  }

  #good(path: string, { status, json, fault }: { status: number; json: unknown; fault: v.InferOutput<typeof failure> | null }) {
    if (status >= 200 && status < 300 && json !== undefined) return json;
    const why = `MLflow at ${this.server.url} answered ${path} with ${status}${fault ? `: ${fault.message.slice(0, 300)}` : ""}`;
    const isRefusal = fault !== null && (status === 400 || status === 404);
    throw isRefusal ? new MlflowRefusal("mlflow.refused", why) : new RunError("mlflow.failed", why);
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// What MLflow's server (3.17) says to what a run asks it, and no more; scripts/nightly/tracking.ts has runs speak to the real
// one.

type Metric = { readonly key: string; readonly value: number; readonly timestamp: number; readonly step: number };
type Text = { readonly key: string; readonly value: string };
type Run = {
  readonly info: { readonly run_id: string; readonly run_name: string; status: string; end_time?: number };
  readonly experiment: string;
  readonly tags: readonly Text[];
  readonly params: Map<string, string>;
  readonly metrics: Map<string, Metric>;
  isDeleted: boolean;
};
type Body = {
  readonly name?: string;
  readonly run_id?: string;
  readonly run_name?: string;
  readonly experiment_id?: string;
  readonly experiment_ids?: readonly string[];
  readonly filter?: string;
  readonly tags?: readonly Text[];
  readonly params?: readonly Text[];
  readonly metrics?: readonly Metric[];
  readonly status?: string;
  readonly end_time?: number;
};

class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}
const invalid = (message: string) => new Refused(400, "INVALID_PARAMETER_VALUE", message);
const missing = (message: string) => new Refused(404, "RESOURCE_DOES_NOT_EXIST", message);

const isName = (name: string) => /^[\w. :/-]+$/.test(name) && !name.split("/").some((part) => /^\.{0,2}$/.test(part));

/** `authorization`: what requests must bring. */
export class MlflowTestServer implements Disposable {
  readonly runs: Run[] = [];
  /** Requests, by their paths. */
  readonly asked: string[] = [];
  /** The status of all answers, as of a server whose store is gone; or none comes. */
  away: number | "silent" | null = null;
  readonly #experiments: string[] = ["Default"];
  readonly #server: ReturnType<typeof Bun.serve>;

  constructor(authorization: string | null = null, port = 0) {
    this.#server = Bun.serve({
      hostname: "127.0.0.1",
      port,
      idleTimeout: 0,
      fetch: async (request) => {
        const { pathname, searchParams } = new URL(request.url);
        const path = pathname.replace("/api/2.0/mlflow/", "");
        this.asked.push(path);
        if (this.away === "silent") return new Promise<Response>(() => undefined);
        if (this.away !== null) return new Response("away", { status: this.away });
        if (request.headers.get("authorization") !== authorization) return new Response("who?", { status: 401 });
        try {
          const body = request.method === "POST" ? ((await request.json()) as Body) : {};
          return Response.json(this.#answer(path, body, searchParams));
        } catch (error) {
          if (!(error instanceof Refused)) throw error;
          return Response.json({ error_code: error.code, message: error.message }, { status: error.status });
        }
      },
    });
  }

  get url(): string {
    return this.#server.url.origin;
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true);
  }

  #answer(path: string, body: Body, search: URLSearchParams): object {
    if (path === "experiments/get-by-name") {
      const at = this.#experiments.indexOf(search.get("experiment_name")!);
      if (at < 0) throw missing("Could not find experiment");
      return { experiment: { experiment_id: `${at}` } };
    }
    if (path === "experiments/create") {
      if (this.#experiments.includes(body.name!)) throw new Refused(400, "RESOURCE_ALREADY_EXISTS", "already exists");
      return { experiment_id: `${this.#experiments.push(body.name!) - 1}` };
    }
    if (path === "runs/search") return { runs: this.#found(body).map((run) => ({ info: run.info, data: { tags: run.tags } })) };
    if (path === "runs/create") {
      const info = { run_id: `run${this.runs.length}`, run_name: body.run_name!, status: "RUNNING" };
      const run: Run = {
        ...{ info, experiment: body.experiment_id!, tags: body.tags!, isDeleted: false },
        ...{ params: new Map(), metrics: new Map() },
      };
      this.runs.push(run);
      return { run: { info } };
    }
    const run = this.runs.find(({ info }) => info.run_id === (body.run_id ?? search.get("run_id")));
    if (!run) throw missing("Run not found");
    if (path === "metrics/get-history") {
      const metrics = [...run.metrics.values()].filter(({ key }) => key === search.get("metric_key"));
      return { metrics };
    }
    if (run.isDeleted) throw invalid("The run must be in the 'active' state. Current state is deleted.");
    if (path === "runs/log-batch") return this.#logged(run, body);
    if (path !== "runs/update") throw new Refused(404, "ENDPOINT_NOT_FOUND", path);
    run.info.status = body.status!;
    if (body.end_time !== undefined) run.info.end_time = body.end_time;
    return { run_info: run.info };
  }

  #found({ experiment_ids: experiments, filter }: Body): Run[] {
    const own = this.runs.filter(({ experiment }) => experiments!.includes(experiment));
    if (filter === undefined) return own;
    const [, key, value] = /^tags\.`([^`]+)` = '([^']*)'$/.exec(filter) ?? [];
    if (key === undefined) throw invalid(`filter ${filter}`);
    return own.filter(({ tags }) => tags.some((tag) => tag.key === key && tag.value === value));
  }

  #logged(run: Run, { metrics = [], params = [] }: Body): object {
    if (metrics.length > 1000 || params.length > 100) throw invalid("A batch logging request can contain at most 1000 metrics");
    for (const { key } of metrics) if (!isName(key)) throw invalid(`Invalid value ${JSON.stringify(key)} for a name`);
    for (const { key, value } of params) {
      if ((run.params.get(key) ?? value) !== value) throw invalid("Changing param values is not allowed");
      if (value.length > 6000) throw invalid("Param value had length over the limit of 6000");
      run.params.set(key, value);
    }
    for (const metric of metrics) run.metrics.set(Object.values(metric).join(" "), metric); // its key has all of these
    return {};
  }
}

// What a server of MLflow's has of runs, by its REST API: the same for the real one and for that of tests.

type Run = {
  readonly info: { readonly run_id: string; readonly run_name: string; readonly status: string };
  readonly data: { readonly params?: readonly { readonly key: string; readonly value: string }[] };
};

async function asked(url: string, path: string, body?: object): Promise<Readonly<Record<string, unknown>>> {
  const init = body && { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  const response = await fetch(`${url}/api/2.0/mlflow/${path}`, init);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return (await response.json()) as Readonly<Record<string, unknown>>;
}

export async function runsAt(url: string, experiment: string): Promise<Run[]> {
  const { experiment: found } = await asked(url, `experiments/get-by-name?experiment_name=${experiment}`);
  const id = (found as { readonly experiment_id: string }).experiment_id;
  const { runs = [] } = await asked(url, "runs/search", { experiment_ids: [id], max_results: 1000 });
  return runs as Run[];
}

/** Steps and values of a number, in the order of their steps. */
export async function historyAt(url: string, { info }: Run, key: string): Promise<(readonly [number, number])[]> {
  const path = `metrics/get-history?run_id=${info.run_id}&metric_key=${encodeURIComponent(key)}`;
  const { metrics = [] } = await asked(url, path);
  return (metrics as readonly { readonly step: number; readonly value: number }[])
    .map(({ step, value }) => [Number(step), value] as const)
    .toSorted(([a], [b]) => a - b);
}

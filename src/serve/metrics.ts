// Counts for Prometheus: what was asked and how long it took, and gauges that are read when they are asked for.

const SECONDS = [0.01, 0.05, 0.25, 1, 5, 30, 120];

export type Gauge = {
  readonly name: string;
  readonly help: string;
  readonly values: () => Iterable<readonly [labels: string, value: number]>;
};

type Histogram = { readonly buckets: number[]; sum: number; count: number };

export class Counters {
  readonly #requests = new Map<string, number>();
  readonly #times = new Map<string, Histogram>();
  readonly #gauges: Gauge[] = [];

  request(method: string, route: string, status: number, seconds: number): void {
    const labels = `method="${method.replaceAll(/[^A-Z]/g, "")}",route="${route}"`;
    const key = `${labels},status="${status}"`;
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
    const time = this.#times.get(labels) ?? { buckets: SECONDS.map(() => 0), sum: 0, count: 0 };
    for (const [i, most] of SECONDS.entries()) if (seconds <= most) time.buckets[i]!++;
    time.sum += seconds;
    time.count++;
    this.#times.set(labels, time);
  }

  add(gauge: Gauge): void {
    this.#gauges.push(gauge);
  }

  /** In Prometheus' text format. */
  get text(): string {
    const lines = ["# HELP mlora_requests_total Requests answered.", "# TYPE mlora_requests_total counter"];
    for (const [labels, value] of this.#requests) lines.push(`mlora_requests_total{${labels}} ${value}`);
    lines.push("# HELP mlora_request_seconds Time to the headers of an answer.", "# TYPE mlora_request_seconds histogram");
    for (const [labels, { buckets, sum, count }] of this.#times) {
      for (const [i, value] of buckets.entries())
        lines.push(`mlora_request_seconds_bucket{${labels},le="${SECONDS[i]}"} ${value}`);
      lines.push(`mlora_request_seconds_bucket{${labels},le="+Inf"} ${count}`);
      lines.push(`mlora_request_seconds_sum{${labels}} ${sum}`, `mlora_request_seconds_count{${labels}} ${count}`);
    }
    for (const { name, help, values } of this.#gauges) {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${name.endsWith("_total") ? "counter" : "gauge"}`);
      for (const [labels, value] of values()) lines.push(`${name}${labels === "" ? "" : `{${labels}}`} ${value}`);
    }
    return `${lines.join("\n")}\n`;
  }
}

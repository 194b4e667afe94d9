// The two halves of scripts/bench/network that are no shell: the recipe that it trains, and what came of it.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { tableOf } from "./table.ts";

const [what, root, work, ...rest] = process.argv.slice(2) as [string, string, string, ...string[]];

/** Adapters on the quickstart's base model and data; short enough that a CPU trains them in a minute or two. */
function recipe(adapters: number): string {
  const data = (name: string) => join(root, "recipes", "data", name, "train.jsonl");
  const one = (i: number) => `
[[adapter]]
name = "a${i}"
data = "${data(["dates", "tickets", "find"][i % 3]!)}"
rank = ${[8, 16, 4, 32][i % 4]}
dropout = ${[0, 0.05, 0.1][i % 3]}
steps = 8
batch_size = 4
`;
  return `[model]
path = "${join(root, "models", "SmolLM2-135M-Instruct")}"
[run]
output = "${join(work, "out")}"
device = "cpu"
stages = 2
tokens_per_microbatch = 256
${Array.from({ length: adapters }, (_, i) => one(i)).join("")}`;
}

const HEAD = `# A pipeline over a slow network

Rows of \`scripts/bench/network --write\`: two network namespaces of one machine with a wire between them that tc slows down, as in the
paper's clusters of 1 Gbit/s; a cpu stage in each, on one core, SmolLM2-135M, eight adapters. "link" is what 32 MiB messages over NATS
carried, of the wire's rate; "bubble" is the idle share of both stages' time from the first pass to the last.

| date (UTC) | commit | machine | wire | link MB/s (of the wire) | adapters | bubble, measured | simulated |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: |
`;

function report(rate: string, write: boolean): void {
  const [, machine, , , , stream] = readFileSync(join(work, "link.txt"), "utf8")
    .split("|")
    .map((cell) => cell.trim())
    .slice(2);
  const carried = 1000 * Number.parseFloat(stream!);
  const [, number, unit] = /^([\d.]+)([gm])bit$/.exec(rate) ?? [];
  const wire = (Number(number) * (unit === "g" ? 1000 : 1)) / 8;
  const { otherData } = JSON.parse(readFileSync(join(work, "trace.json"), "utf8"));
  const { schedule } = JSON.parse(readFileSync(join(work, "plan.json"), "utf8"));
  tableOf("network", HEAD, write)(
    machine ?? "?",
    rate,
    `${carried.toFixed(0)} (${((100 * carried) / wire).toFixed(0)} %)`,
    otherData.adapters.length,
    otherData.bubble.toFixed(3),
    schedule.bubble.toFixed(3),
  );
}

if (what === "recipe") process.stdout.write(recipe(Number(rest[0])));
else report(rest[0]!, rest.includes("--write"));

// `mlora plan RECIPE`: what a run would do, without doing it.

import { formatBytes } from "../base/bytes.ts";
import { sum } from "../base/shape.ts";
import type { Dataset } from "../data/dataset.ts";
import { type AdapterPlan, totalBytes, totalMemory } from "../plan/plan.ts";
import type { Overrides } from "../recipe/recipe.ts";
import { type Prepared, prepare, shortPath } from "./prepare.ts";
import { count, table } from "./table.ts";

export type PlanOptions = Overrides & { readonly json?: boolean };

export async function plan(recipePath: string, options: PlanOptions): Promise<void> {
  const prepared = prepare(recipePath, options);
  const text = options.json ? JSON.stringify(planJson(prepared), null, 2) : planText(prepared).join("\n");
  process.stdout.write(`${text}\n`);
}

/** For machines: every number of the text, by name. */
export function planJson({ plan, data }: Prepared) {
  const { recipe, spec, device, adapters, stages, budget } = plan;
  const { sizes } = stages[0]!;
  const memory = totalMemory(plan);
  return {
    recipe: recipe.path,
    model: { path: recipe.model.path, ...spec, windows: [...new Set(spec.windows)] },
    device,
    output: recipe.run.output,
    seed: recipe.run.seed,
    tokens_per_microbatch: budget,
    rows_per_pass: sizes.rows,
    recomputation: sizes.recomputation,
    stages: stages.map(({ part, memory: of, inFlight, device: { ordinal } }) => ({
      layers: [part.from, part.to],
      device: ordinal,
      in_flight: inFlight,
      memory_bytes: { ...of, total: totalBytes(of) },
    })),
    adapters: adapters.map((adapter, i) => ({
      name: adapter.name,
      rank: adapter.rank,
      alpha: adapter.recipe.alpha,
      scale: adapter.scale,
      dropout: adapter.recipe.dropout,
      targets: adapter.targets,
      learning_rate: adapter.recipe.optimizer.learningRate,
      batch_size: adapter.work.batchSize,
      accumulation: adapter.work.accumulation,
      rows: adapter.rows,
      eval_rows: adapter.evalRows,
      truncated_rows: data[i]!.counts.truncated,
      dropped_rows: data[i]!.counts.dropped,
      steps: adapter.steps,
      tokens: adapter.tokens,
      parameters: adapter.parameters,
    })),
    memory_bytes: { ...memory, total: totalBytes(memory) },
  };
}

function planText({ plan, data }: Prepared): string[] {
  const { recipe, spec, device, adapters, stages } = plan;
  const { sizes } = stages[0]!;
  const memory = totalMemory(plan);
  const right = { align: "right" } as const;
  type Row = { readonly adapter: AdapterPlan; readonly counts: Dataset["counts"] };
  const rows: Row[] = adapters.map((adapter, i) => ({ adapter, counts: data[i]!.counts }));
  const adapterLines = table<Row>(
    [
      { title: "adapter", of: ({ adapter }) => adapter.name },
      { title: "rank", of: ({ adapter }) => `${adapter.rank}`, ...right },
      { title: "targets", of: ({ adapter }) => `${adapter.targets.length}`, ...right },
      { title: "learning rate", of: ({ adapter }) => `${adapter.recipe.optimizer.learningRate}`, ...right },
      { title: "batch", of: ({ adapter: { work } }) => `${work.batchSize} x ${work.accumulation}`, ...right },
      { title: "rows", of: ({ adapter }) => count(adapter.rows), ...right },
      { title: "cut", of: ({ counts }) => count(counts.truncated), ...right },
      { title: "dropped", of: ({ counts }) => count(counts.dropped), ...right },
      { title: "held out", of: ({ adapter }) => count(adapter.evalRows), ...right },
      { title: "steps", of: ({ adapter }) => count(adapter.steps), ...right },
      { title: "tokens", of: ({ adapter }) => count(adapter.tokens), ...right },
      { title: "parameters", of: ({ adapter }) => count(adapter.parameters), ...right },
    ],
    rows,
  );
  const memoryRows = [...Object.entries(memory), ["total", totalBytes(memory)] as const];
  return [
    `${shortPath(recipe.path)}: ${adapters.length} adapters on ${shortPath(recipe.model.path)}`,
    `  base model   ${spec.family}, ${spec.layers} layers, hidden ${spec.hidden}, vocabulary ${count(spec.vocab)}`,
    `  device       ${device.kind} (${device.name}), ${device.compute}, recomputation ${sizes.recomputation}`,
    `  passes       at most ${count(sizes.rows)} rows, shared by adapters; a micro-batch at most ${count(plan.budget)} tokens`,
    `  output       ${shortPath(recipe.run.output)}`,
    "",
    ...adapterLines,
    "",
    `${count(sum(adapters.map(({ steps }) => steps)))} steps, ${count(sum(adapters.map(({ tokens }) => tokens)))} tokens in all`,
    "",
    ...table(
      [
        { title: "memory", of: ([part]) => part },
        { title: "", of: ([, bytes]) => formatBytes(bytes), ...right },
      ],
      memoryRows,
    ),
    `  ${formatBytes(device.freeBytes)} of ${formatBytes(device.totalBytes)} are free on the ${device.kind}`,
  ];
}

// What fewer bits cost in quality, of a base or of an optimizer's moments: the quickstart trained over SmolLM2 in each
// precision by each optimizer, and its adapters' held-out losses.
//
//   bun scripts/bench/quality.ts [--precisions "auto int8 nf4"] [--optimizers "adamw adamw-8bit"] [--device auto]
//                                [--mlora "bun src/main.ts"] [--at-once] [--write]
//                                [--data FILE [--rows 200] [--held 40] [--epochs 1]]
//
// With --data one adapter on the first --rows of that file instead, and evaluated on the --held rows after them; they have a
// question and an answer: harder, so that losses stay large. Needs the quickstart's base model: scripts/model. Ratios to the
// first precision and optimizer count. --at-once trains all of them concurrently, for a device with room for all. --write adds
// the rows to docs/measurements/quality.md.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { tableOf } from "./table.ts";

const ROOT = join(import.meta.dir, "..", "..");
const { values } = parseArgs({
  options: {
    precisions: { type: "string", default: "auto int8 nf4" },
    optimizers: { type: "string", default: "adamw" },
    data: { type: "string" },
    rows: { type: "string", default: "200" },
    held: { type: "string", default: "40" },
    epochs: { type: "string", default: "1" },
    device: { type: "string", default: "auto" },
    mlora: { type: "string", default: `${process.execPath} ${join(ROOT, "src", "main.ts")}` },
    "at-once": { type: "boolean", default: false },
    write: { type: "boolean", default: false },
  },
});

type Line = {
  readonly type: string;
  readonly adapter: string;
  readonly loss: number;
  readonly exact: number;
  readonly rows: number;
};

const [trainedRows, heldRows] = [Number(values.rows), Number(values.held)];

/** The recipe, in a folder with its data. */
function recipeIn(folder: string, precision: string, optimizer: string): string {
  if (values.data === undefined)
    return readFileSync(join(ROOT, "recipes", "quickstart.toml"), "utf8")
      .replace(/^precision = .*$/m, `precision = "${precision}"`)
      .replace(/^\[defaults\]$/m, `[defaults]\noptimizer = "${optimizer}"`)
      .replaceAll('"../models/', `"${join(ROOT, "models")}/`)
      .replaceAll('"data/', `"${join(ROOT, "recipes", "data")}/`)
      .replace(/^output = .*$/m, 'output = "out"');
  const rows = readFileSync(values.data, "utf8").split("\n");
  writeFileSync(join(folder, "train.jsonl"), `${rows.slice(0, trainedRows).join("\n")}\n`);
  writeFileSync(join(folder, "eval.jsonl"), `${rows.slice(trainedRows, trainedRows + heldRows).join("\n")}\n`);
  return `[model]
path = "${join(ROOT, "models", "SmolLM2-135M-Instruct")}"
precision = "${precision}"
[run]
output = "out"
[[adapter]]
name = "answers"
data = { train = "train.jsonl", eval = "eval.jsonl" }
format = "template"
template = { prompt = "{{ question }}", completion = "{{ answer }}" }
rank = 16
optimizer = "${optimizer}"
learning_rate = 5e-4
batch_size = 8
epochs = ${values.epochs}
max_length = 192
`;
}

/** The last evaluation of each adapter. */
async function trained(precision: string, optimizer: string): Promise<Map<string, Line>> {
  const folder = mkdtempSync(join(tmpdir(), "mlora-quality-"));
  try {
    writeFileSync(join(folder, "recipe.toml"), recipeIn(folder, precision, optimizer));
    const command = [...values.mlora.split(" "), "run", join(folder, "recipe.toml"), "--device", values.device];
    const child = Bun.spawn(command, { stdout: "ignore", stderr: "pipe" });
    const [err, code] = await Promise.all([child.stderr.text(), child.exited]);
    if (code !== 0) throw new Error(`${command.join(" ")}: exit code ${code}\n${err}`);
    const lines = readFileSync(join(folder, "out", "metrics.jsonl"), "utf8")
      .trimEnd()
      .split("\n");
    const found = lines.map((line): Line => JSON.parse(line)).filter(({ type }) => type === "evaluation");
    return new Map(found.map((line) => [line.adapter, line]));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const HEAD = `# Quality with fewer bits

Rows of \`bun scripts/bench/quality.ts --write\`: the quickstart's adapters on SmolLM2-135M-Instruct, the last held-out loss of each, its ratio to
that of the first line of its run, and the share of answers that are exactly right.

| date (UTC) | commit | device | precision, optimizer | adapter | held-out loss | ratio | exact match |
| --- | --- | --- | --- | --- | ---: | ---: | ---: |
`;
const keep = tableOf("quality", HEAD, values.write);
let first: Map<string, Line> | null = null;
const [optimizers, precisions] = [values.optimizers.split(" "), values.precisions.split(" ")];
const settings = precisions.flatMap((of) => optimizers.map((by) => [of, by] as const));
const begun = values["at-once"] ? settings.map((of) => trained(...of)) : null;
const failed: Error[] = [];
for (const run of begun ?? []) run.catch(() => undefined); // thrown in its turn below
for (const [i, [precision, optimizer]] of settings.entries()) {
  const found = await (begun?.[i] ?? trained(precision, optimizer)).catch((error: Error) => {
    failed.push(error);
    return new Map<string, Line>();
  });
  if (found.size === 0) continue;
  first ??= found;
  for (const [adapter, { loss, exact, rows: of }] of found) {
    const ratio = (loss / first.get(adapter)!.loss).toFixed(3);
    keep(
      values.device,
      optimizer === "adamw" ? precision : `${precision}, ${optimizer}`,
      values.data === undefined ? adapter : `${adapter}, ${trainedRows} rows, epochs ${values.epochs}`,
      loss.toFixed(4),
      ratio,
      `${((100 * exact) / of).toFixed(0)} %`,
    );
  }
}
if (failed.length > 0) throw failed[0];

// Adapters that come, fork and end for a long time on a few cpu stages, while several clients ask for things at once and the
// run's server is killed now and then: nothing may grow, no handle may stay open, no answer may be lost.
//
//   scripts/bench/soak [--minutes 20] [--stages 4] [--adapters 12] [--clients 0] [--kills 0] [--write]
//
// A run is kept open on a tiny base model, so that as many steps, messages and links as possible go by. Adapters join one after
// another by `mlora add` and end at different times, by their last step or by `mlora stop`. Each client asks for one thing
// after another without a pause: ps, pause and resume, fork, stop of what was forked. Every request must end by itself within
// two minutes, with an answer or with an error that says why (its adapter has ended, the server was lost). --kills kills the
// run's nats-server that many times, evenly spread. Every few seconds the memory (RSS) and the open files of each process are
// counted. Fails where one of them ends with more open files than it had when the last adapter came, or with more memory in the
// last part than in the one before, by more than what is collected as garbage, and where a request is lost. --write adds a row
// to docs/measurements/soak.md.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { processor } from "../../src/base/machine.ts";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, range } from "../../src/base/shape.ts";
import { writeTinyModel } from "../../tests/helpers/model.ts";
import { childrenOf, commandOf, sums } from "../../tests/helpers/program.ts";

const ROOT = join(import.meta.dir, "..", "..");
const MAIN = join(ROOT, "src", "main.ts");
const FILE = join(ROOT, "docs", "measurements", "soak.md");
const EVERY_MS = 5_000;
/** MiB that the garbage collector of a process may leave lying in one third and not in another. */
const SLACK = 24;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "20" },
    stages: { type: "string", default: "4" },
    adapters: { type: "string", default: "12" },
    clients: { type: "string", default: "0" },
    kills: { type: "string", default: "0" },
    write: { type: "boolean", default: false },
  },
});
const [minutes, count] = [Number(values.minutes), Number(values.adapters)];
const [STAGES, clients, kills] = [Number(values.stages), Number(values.clients), Number(values.kills)];
const SPAN_MS = minutes * 60_000;
/** Within this every request has an answer, or it is lost. */
const ANSWER_MS = 120_000;

const work = mkdtempSync(join(tmpdir(), "mlora-soak-"));
const output = join(work, "out");
const environment = { ...process.env, MLORA_CACHE: join(work, "cache") };

const adapter = (i: number): string => `[model]
path = "${join(work, "model")}"
[run]
output = "${output}"
device = "cpu"
stages = ${STAGES}
slots = 12
tokens_per_microbatch = 60
checkpoint = { steps = 500 }
restarts = 1000
[[adapter]]
name = "a${i}"
data = { train = "${join(work, "rows.jsonl")}", split = 0.2 }
rank = ${[8, 3, 1, 16, 5, 12, 7, 4][i % 8]}
dropout = ${[0.1, 0, 0.05, 0.3][i % 4]}
batch_size = ${[3, 1, 2, 4, 5][i % 5]}
accumulation = ${[1, 3, 2, 1][i % 4]}
learning_rate = 1e-4
eval_every = ${200 + 37 * i}
steps = ${i % 3 === 0 ? 2_000 + 500 * i : 100_000_000}
`;

const recipe = (i: number): string => {
  const path = join(work, `a${i}.toml`);
  writeFileSync(path, adapter(i));
  return path;
};

type Answer = { readonly code: number | null; readonly out: string; readonly err: string };

/** `code` is null where there was no answer in time. */
async function mlora(...args: string[]): Promise<Answer> {
  const child = Bun.spawn([process.execPath, MAIN, ...args], {
    env: environment,
    stdout: "pipe",
    stderr: "pipe",
    timeout: ANSWER_MS,
    killSignal: "SIGKILL",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  await child.exited;
  return { code: child.exitCode, out, err };
}

/** What came of the clients' requests, by what was asked and how it ended: "fork ok", "pause error[control.lost]". */
const answers = new Map<string, number>();
let lost = 0;

async function ask(...args: string[]): Promise<void> {
  const { code, err } = await mlora(...args);
  const how = code === 0 ? "ok" : (/error\[[a-z.-]+\]/.exec(err)?.[0] ?? `exit code ${code}`);
  if (code !== 0 && (code === null || code >= 70 || !how.startsWith("error["))) {
    lost++;
    console.log(`lost: mlora ${args.join(" ")}: exit code ${code}\n${err}`);
  }
  const what = `${args[0]} ${how}`;
  answers.set(what, (answers.get(what) ?? 0) + 1);
}

/** One thing after another until the time is over. */
async function client(id: number, left: () => number): Promise<void> {
  const rng = new Rng(0x50a4, id);
  for (let n = 0; left() > ANSWER_MS / 4; n++) {
    const adapter = `a${rng.below(count)}`;
    const copy = `f${id}-${n}`;
    switch (rng.below(4)) {
      case 0:
        await ask("ps", "--json");
        break;
      case 1:
        await ask("pause", output, adapter);
        await ask("resume", output, adapter);
        break;
      case 2:
        await ask("fork", output, adapter, copy, "--set", `steps = 100000000, learning_rate = ${1e-4 * (1 + rng.uniform())}`);
        await ask("stop", output, copy);
        break;
      default:
        await ask("ps");
    }
  }
}

type Sample = { readonly at: number; readonly rss: number; readonly files: number };
const samples = new Map<string, Sample[]>();

/** Counts what each process of the run holds. */
function sample(pid: number, at: number): void {
  const children = childrenOf(pid);
  const stages = children.filter((child) => !/nats-server/.test(commandOf(child)));
  for (const one of [pid, ...children])
    try {
      const [, rss] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${one}/status`, "utf8")) ?? [];
      const files = readdirSync(`/proc/${one}/fd`).length;
      const name = one === pid ? "coordinator" : stages.includes(one) ? `stage ${stages.indexOf(one)}` : "nats-server";
      samples.set(name, [...(samples.get(name) ?? []), { at, rss: Number(rss) / 1024, files }]);
    } catch {
      // it has just ended
    }
}

const minOf = (numbers: readonly number[]): number => -maxOf(numbers.map((number) => -number));
const median = (numbers: readonly number[]): number => numbers.toSorted((a, b) => a - b)[numbers.length >> 1] ?? Number.NaN;

async function soak(): Promise<boolean> {
  writeTinyModel(join(work, "model"), STAGES);
  writeFileSync(join(work, "rows.jsonl"), sums(40));
  mkdirSync(join(work, "cache"), { mode: 0o700 });
  const log = Bun.file(join(work, "log"));
  const run = Bun.spawn([process.execPath, MAIN, "run", recipe(0), "--keep-open"], {
    env: environment,
    stdout: log,
    stderr: Bun.file(join(work, "err")),
  });
  try {
    const started = performance.now();
    const left = () => SPAN_MS - (performance.now() - started);
    // Adapters join during the first half, and those that do not end by themselves are stopped in the third quarter.
    const joins = range(count - 1).map((i) => ((i + 1) / count) * 0.5 * SPAN_MS);
    const stops = range(count)
      .filter((i) => i % 3 === 1)
      .map((i, k, all) => ({ i, at: (0.5 + (0.2 * k) / all.length) * SPAN_MS }));
    const killTimes = range(kills).map((k) => ((k + 1) / (kills + 1)) * 0.7 * SPAN_MS);
    while (!existsSync(join(output, "metrics.jsonl")) && left() > 0) await Bun.sleep(100);
    const asking = range(clients).map((id) => client(id, left));
    let [joined, stopped, killed] = [0, 0, 0];
    while (left() > 0) {
      const at = performance.now() - started;
      if (run.exitCode !== null) throw new Error(`the run ended: ${readFileSync(join(work, "err"), "utf8").slice(-2000)}`);
      if (joined < joins.length && at >= joins[joined]!) {
        joined++;
        void ask("add", output, recipe(joined));
      }
      if (stopped < stops.length && at >= stops[stopped]!.at) void ask("stop", output, `a${stops[stopped++]!.i}`);
      if (killed < killTimes.length && at >= killTimes[killed]!) {
        killed++;
        const server = childrenOf(run.pid).find((child) => /nats-server/.test(commandOf(child)));
        if (server !== undefined) process.kill(server, "SIGKILL");
      }
      sample(run.pid, at);
      await Bun.sleep(Math.min(EVERY_MS, Math.max(1, left())));
    }
    await Promise.all(asking);
    console.log((await mlora("ps")).out);
    await mlora("stop", output);
    const code = await run.exited;
    return report(code);
  } finally {
    run.kill("SIGKILL");
    rmSync(work, { recursive: true, force: true });
  }
}

function report(code: number): boolean {
  const steps = readFileSync(join(output, "metrics.jsonl"), "utf8").split('"type":"step"').length - 1;
  const between = (all: readonly Sample[], from: number, to: number) =>
    all.filter(({ at }) => at >= from * SPAN_MS && at < to * SPAN_MS);
  let good = (code === 0 || code === 1) && lost === 0; // stopped before adapters without an end had ended
  // What lived only between two stages' lives, while they were opened again, has no samples at the end.
  const lasting = [...samples].filter(([, all]) => between(all, 0.85, 1).length > 0);
  const lines = lasting.map(([name, all]) => {
    const [second, third] = [between(all, 0.7, 0.85), between(all, 0.85, 1)];
    const [before, after] = [median(second.map(({ rss }) => rss)), median(third.map(({ rss }) => rss))];
    // a checkpoint opens one for a moment
    const files = [minOf(second.map((of) => of.files)), minOf(third.map((of) => of.files))];
    const grew = after - before > SLACK || files[1]! > files[0]!;
    if (grew) good = false;
    return `${name}: ${before.toFixed(0)} MiB, then ${after.toFixed(0)} MiB; open files ${files[0]}, then ${files[1]}${grew ? "  GREW" : ""}`;
  });
  if (clients > 0) {
    const all = [...answers].sort(([a], [b]) => (a < b ? -1 : 1)).map(([what, times]) => `${what} ${times}`);
    lines.push(`requests of ${clients} clients, ${lost} lost: ${all.join(", ")}`);
  }
  const many = `${STAGES} stages, ${count} adapters, ${kills} kills of the server`;
  const text = `${minutes} min, ${many}, ${steps} steps, ${processor().model}, exit code ${code}`;
  console.log([text, ...lines].join("\n"));
  if (values.write) keep(text, lines);
  return good;
}

function keep(text: string, lines: readonly string[]): void {
  const commit = Bun.spawnSync(["git", "describe", "--always", "--dirty"], { cwd: ROOT }).stdout.toString().trim();
  const head = `# Soaks

Of \`scripts/bench/soak --write\`: a run of cpu stages on a tiny base model that is kept open while adapters come and go. Of each process
the memory (RSS, median) and the least open files between 70 and 85 % of the time, when all have come, and in what is left.
`;
  const before = existsSync(FILE) ? readFileSync(FILE, "utf8") : head;
  const date = new Date().toISOString().slice(0, 16).replace("T", " ");
  writeFileSync(FILE, `${before}\n${date} UTC, ${commit}: ${text}.\n\n${lines.map((line) => `- ${line}\n`).join("")}`);
}

process.exit((await soak()) ? 0 : 1);

// The program as a person starts it: from the command line, in a folder of its own, with a tiny model to train on.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkpointsIn } from "../../src/files/checkpoint.ts";
import { writeTinyModel } from "./model.ts";

/**
 * A run of a test ends before the time that Bun's compiler of JavaScript takes is won back: with these, a function is called 10
 * times as often before it is compiled as otherwise, and is never optimised. It costs a run a third less of CPU. What is
 * optimised runs in tests that call functions of the program themselves.
 */
const SHORT = ["BUN_JSC_thresholdForJITAfterWarmUp=5000", "BUN_JSC_useDFGJIT=0"];

/**
 * The beginning of its command line: one file, where scripts/test has made it of this checkout, since its start costs half as
 * much; else the sources.
 */
export const PROGRAM: readonly string[] = [
  "env",
  ...SHORT,
  ...(process.env["MLORA_TEST_PROGRAM"]
    ? [process.env["MLORA_TEST_PROGRAM"]]
    : [process.execPath, join(import.meta.dir, "..", "..", "src", "main.ts")]),
];

export type Ended = { readonly code: number; readonly out: string; readonly err: string };
export type Running = {
  readonly pid: number;
  readonly kill: (signal: NodeJS.Signals) => void;
  readonly ended: Promise<Ended>;
};

/** A folder with a tiny base model, and the program started there. Disposing ends what still runs and removes the folder. */
export class Workplace implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), "mlora-program-"));
  readonly model = join(this.root, "model");
  /** Where the programs have their temporary files: no other's are there. */
  readonly temporary = join(this.root, "tmp");
  #made = 0;
  readonly #running = new Set<Bun.Subprocess>();

  constructor(layers?: number) {
    writeTinyModel(this.model, layers);
    mkdirSync(this.temporary);
  }

  /** `environment`: in addition to ours. `prefix`: a program that starts it. */
  start(args: readonly string[], environment: Readonly<Record<string, string>> = {}, prefix: readonly string[] = []): Running {
    const child = Bun.spawn([...prefix, ...PROGRAM, ...args], {
      cwd: this.root,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, TMPDIR: this.temporary, MLORA_CACHE: join(this.root, "cache"), ...environment },
    });
    this.#running.add(child);
    void child.exited.then(() => this.#running.delete(child));
    const ended = Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
    return {
      pid: child.pid,
      kill: (signal) => child.kill(signal),
      ended: ended.then(([out, err, code]) => ({ out, err, code })),
    };
  }

  mlora(...args: readonly string[]): Promise<Ended> {
    return this.start(args).ended;
  }

  /** Writes files into a folder of their own; returns the path of the recipe among them. */
  project(recipe: string, files: Readonly<Record<string, string>> = {}): string {
    const folder = join(this.root, `project-${this.#made++}`);
    mkdirSync(folder);
    for (const [name, text] of Object.entries({ "recipe.toml": recipe, ...files })) writeFileSync(join(folder, name), text);
    return join(folder, "recipe.toml");
  }

  [Symbol.dispose](): void {
    for (const child of this.#running) child.kill("SIGKILL"); // of a test that failed
    rmSync(this.root, { recursive: true, force: true });
  }
}

/** `n` rows of a sum to complete. */
export const sums = (n: number): string =>
  Array.from(
    { length: n },
    (_, i) => `${JSON.stringify({ prompt: `What is ${i * i} + 1?`, completion: `${i * i + 1}` })}\n`,
  ).join("");

/** The lines of a run's metrics, those of one type. */
export function metrics(output: string, type: string): readonly Record<string, unknown>[] {
  const lines = readFileSync(join(output, "metrics.jsonl"), "utf8").split("\n");
  return lines
    .slice(0, -1)
    .map((line) => JSON.parse(line))
    .filter((line) => line.type === type);
}

/**
 * A recipe of up to eight adapters, no two of which are alike: rank, dropout, targets, batch, accumulation, clipping, length.
 */
export function unlike(adapters: readonly number[], device: string, more = ""): string {
  const targets = ['"all-linear"', '["q_proj", "down_proj"]', '["o_proj", "up_proj", "v_proj"]'];
  const one = (i: number) => `
[[adapter]]
name = "a${i}"
rank = ${[3, 8, 1, 16, 5, 12, 7, 4][i]}
init = "${["default", "gaussian", "default", "orthogonal", "default", "gaussian", "default", "orthogonal"][i]}"
method = "${i % 4 === 1 ? "dora" : "lora"}"
${i % 4 === 1 ? "" : `lora_plus_ratio = ${[4, 1, 1, 8][i % 4]}`}
dropout = ${[0.1, 0, 0.05, 0.3, 0.1, 0, 0.2, 0.1][i]}
targets = ${targets[i % 3]}
batch_size = ${[3, 1, 2, 4, 5, 2, 1, 3][i]}
accumulation = ${[1, 3, 2, 1, 1, 2, 4, 2][i]}
max_grad_norm = ${i % 2 === 0 ? 0.2 : "false"}
steps = ${[6, 4, 9, 5, 3, 7, 6, 5][i]}
eval_every = ${2 + (i % 3)}
`;
  return `[model]
path = "../model"
[run]
output = "out"
device = "${device}"
tokens_per_microbatch = 60
${more}
[defaults]
data = { train = "rows.jsonl", split = 0.2 }
learning_rate = 3e-3
${adapters.map(one).join("")}`;
}

/** The data of such a recipe. */
export const SUMS = { "rows.jsonl": sums(20) };

/** Whether each of these adapters has a whole checkpoint to continue from: before that a run that is killed begins anew. */
export const areKept = (output: string, adapters: readonly string[]): boolean =>
  adapters.every((name) => checkpointsIn(join(output, "checkpoints", name)).length > 0);

/** All that a run leaves of an adapter, but how fast it was. */
export const leftOf = (output: string, adapter: string) => ({
  weights: readFileSync(join(output, adapter, "adapter_model.safetensors")).toString("base64"),
  steps: metrics(output, "step")
    .filter((line) => line["adapter"] === adapter)
    .map(({ tokens_per_second: _, ...line }) => line),
  evaluations: metrics(output, "evaluation").filter((line) => line["adapter"] === adapter),
});
export type Left = ReturnType<typeof leftOf>;

/** The same recipe with `factor` times the steps, so that something can happen in the middle. */
export const longer = (text: string, factor: number): string =>
  text.replaceAll(/^steps = (\d+)$/gm, (_, steps) => `steps = ${factor * Number(steps)}`);

/** Processes that a process has started. */
export const childrenOf = (pid: number): number[] =>
  readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number);
/** The command line of a process; empty where it has ended meanwhile. */
export function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}

/** Files that a process has open. */
export const filesOf = (pid: number): string[] =>
  readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/${pid}/fd/${fd}`)];
    } catch {
      return []; // closed meanwhile
    }
  });

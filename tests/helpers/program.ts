// The program as a person starts it: from the command line, in a folder of its own, with a tiny model to train on.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeTinyModel } from "./model.ts";

const MAIN = join(import.meta.dir, "..", "..", "src", "main.ts");

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
  #made = 0;
  readonly #running = new Set<Bun.Subprocess>();

  constructor(layers?: number) {
    writeTinyModel(this.model, layers);
  }

  /** `environment`: beside ours. */
  start(args: readonly string[], environment: Readonly<Record<string, string>> = {}): Running {
    const child = Bun.spawn([process.execPath, MAIN, ...args], {
      cwd: this.root,
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, ...environment },
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

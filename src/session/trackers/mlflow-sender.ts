// Sends a run's lines to MLflow's server while the run trains, and what is left by `mlora sync`. A server that is away costs
// the run nothing: its lines are in files. Sending a line twice changes nothing: a run is found by its tag, and MLflow has a
// number of one name, step and time once.

import { join } from "node:path";
import * as v from "valibot";
import { now } from "../../base/clock.ts";
import { MloraError, RunError, textOf } from "../../base/errors.ts";
import { linesAfter, type MlflowLine, type MlflowSent, readSent, writeSent } from "../../files/mlflow.ts";
import { MLFLOW } from "../../recipe/recipe.ts";
import { MlflowClient, MlflowRefusal, type MlflowServer } from "./mlflow-server.ts";

/** ms: between looks at the lines, after a failure at most, and for what is left at the end. */
const [EVERY_MS, MOST_MS, END_MS] = [5_000, 60_000, 15_000];

type Notice = (text: string) => void;

/** Sends the lines of a run's folder that the server does not have. `lost` is called for an adapter that it refuses. */
export class MlflowSending {
  readonly #folder: string;
  readonly #refused = new Set<string>();
  #sent: MlflowSent;

  constructor(
    output: string,
    private readonly server: MlflowServer,
    private readonly lost: Notice,
  ) {
    this.#folder = join(output, MLFLOW);
    const { experiment, url } = server;
    const place = { server: url, experiment: "id" in experiment ? `id ${experiment.id}` : experiment.name };
    const before = readSent(this.#folder);
    const isSame = before?.server === place.server && before.experiment === place.experiment;
    this.#sent = isSame ? before : { ...place, bytes: 0, runs: {} }; // another server gets all of it
  }

  /** Throws a RunError where the server cannot be reached or does not answer as MLflow does. */
  async send(signal: AbortSignal): Promise<number> {
    const client = new MlflowClient(this.server, signal);
    for (let all = 0; ; ) {
      const { lines, to } = linesAfter(this.#folder, this.#sent.bytes);
      if (to === this.#sent.bytes) return all;
      const runs = { ...this.#sent.runs };
      for (const [adapter, own] of Map.groupBy(lines, (line) => line.adapter)) {
        if (this.#refused.has(adapter)) continue;
        try {
          await sendOf(client, own, runs);
        } catch (error) {
          if (!(error instanceof MlflowRefusal)) throw asRunError(error);
          this.#refused.add(adapter);
          this.lost(`${textOf(error)}; the run of ${adapter} there gets nothing more`);
        }
      }
      this.#sent = { ...this.#sent, bytes: to, runs };
      writeSent(this.#folder, this.#sent);
      all += lines.length;
    }
  }
}

/** An answer that is not MLflow's. */
function asRunError(error: unknown): unknown {
  if (error instanceof v.ValiError)
    return new RunError("mlflow.failed", `the server does not answer as MLflow does: ${error.message}`);
  return error;
}

/** An adapter's lines in their order: numbers together, before what comes after them. */
async function sendOf(client: MlflowClient, lines: readonly MlflowLine[], runs: MlflowSent["runs"]): Promise<void> {
  const waiting: Parameters<MlflowClient["log"]>[1][number][] = [];
  const flush = async () => {
    const run = runs[lines[0]!.adapter];
    if (run && waiting.length > 0) await client.log(run.run, waiting, []);
    waiting.length = 0;
  };
  for (const line of lines) {
    const { adapter, time } = line;
    if (line.what === "begin") {
      await flush();
      const run = await client.run({ id: line.id, name: adapter, began: time });
      runs[adapter] = { id: line.id, run };
      await client.log(
        run,
        [],
        Object.entries(line.params).map(([key, value]) => ({ key, value })),
      );
    } else if (line.what === "status") {
      await flush();
      const run = runs[adapter];
      if (run) await client.status(run.run, line.status, time);
    } else
      for (const [name, value] of Object.entries(line.scalars))
        waiting.push({ key: keyOf(name), value, timestamp: time, step: line.step });
  }
  await flush();
}

/** A name that MLflow takes: its letters, and no parts that a path would drop. */
export const keyOf = (name: string): string =>
  name
    .replaceAll(/[^\w. :/-]/g, "_")
    .split("/")
    .map((part) => (/^\.{0,2}$/.test(part) ? "_" : part))
    .join("/");

/** Sends while the run trains; disposing sends the rest, for some seconds, and says what waits. */
export class MlflowSender implements AsyncDisposable {
  readonly #ending = Promise.withResolvers<void>();
  readonly #stop = new AbortController();
  readonly #sending: MlflowSending;
  readonly #loop: Promise<void>;
  #isEnding = false;

  constructor(
    private readonly output: string,
    server: MlflowServer,
    private readonly notice: Notice,
  ) {
    this.#sending = new MlflowSending(output, server, notice);
    this.#loop = this.#run();
  }

  async #run(): Promise<void> {
    let wait = EVERY_MS;
    let isTold = false;
    while (!this.#isEnding) {
      await this.#wait(wait);
      if (this.#isEnding) return;
      try {
        await this.#sending.send(this.#stop.signal);
        wait = EVERY_MS;
      } catch (error) {
        wait = Math.min(MOST_MS, 2 * wait);
        if (!isTold && !this.#isEnding) this.notice(`${faultText(error)}; training continues, and what MLflow gets waits`);
        isTold = true;
      }
    }
  }

  /** Until the end at most. */
  async #wait(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms);
    await Promise.race([promise, this.#ending.promise]);
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isEnding = true;
    this.#ending.resolve();
    const until = now() + END_MS;
    const late = setTimeout(() => this.#stop.abort(new RunError("mlflow.failed", "MLflow takes too long")), END_MS);
    try {
      await this.#loop;
      if (now() < until) await this.#sending.send(this.#stop.signal);
    } catch (error) {
      this.notice(`${faultText(error)}; \`mlora sync ${this.output}\` sends what it has not got`);
    } finally {
      clearTimeout(late);
    }
  }
}

/** Nothing that MLflow's server, or the disk, does ends a run. */
const faultText = (error: unknown): string => (error instanceof MloraError ? textOf(error) : `MLflow: ${textOf(error)}`);

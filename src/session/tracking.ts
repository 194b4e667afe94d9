// Files for trackers of experiments in a run's folder. They are no result of the run: what cannot be written waits, is written
// with what follows, and at the end it is said that it is missing.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { appendBytes } from "../base/atomic.ts";
import { now, wallTime } from "../base/clock.ts";
import { MloraError, textOf } from "../base/errors.ts";
import { count } from "../base/units.ts";
import { scalarsRecord, startRecord, versionRecord } from "../files/tfevents.ts";
import type { Plan } from "../plan/plan.ts";
import { TENSORBOARD } from "../recipe/recipe.ts";
import type { Listener } from "./events.ts";
import { scalarsOf } from "./scalars.ts";

/** Time between writes, and what waits at most: of all adapters together. */
const [EVERY_MS, MOST_WAITING] = [5_000, 16 << 20];

export type Tracking = {
  readonly listener: Listener;
  /** Before a checkpoint: what comes before it lasts, since a resumed run does not make it again. */
  readonly write: () => void;
  /** At the end; says what is missing. */
  readonly flush: () => void;
};

/** Bytes that go to the end of files, a few writes for many events. */
class Waiting {
  readonly #of = new Map<string, Uint8Array[]>();
  #bytes = 0;
  #lost = 0;
  #fault: unknown = null;
  #at = now();

  constructor(
    private readonly folder: string,
    private readonly notice: (text: string) => void,
  ) {}

  add(path: string, record: Uint8Array): void {
    if (this.#lost > 0 || this.#bytes + record.length > MOST_WAITING) {
      this.#lost++; // at the end, so that what is there has no gap
      return;
    }
    const of = this.#of.get(path);
    if (of) of.push(record);
    else this.#of.set(path, [record]);
    this.#bytes += record.length;
    if (now() - this.#at >= EVERY_MS) this.write();
  }

  write(): void {
    this.#at = now();
    try {
      if (!existsSync(this.folder)) return; // the run finds that out, and says it
      for (const [path, records] of this.#of) {
        appendBytes(path, Buffer.concat(records));
        this.#of.delete(path);
        for (const { length } of records) this.#bytes -= length;
      }
    } catch (error) {
      if (!(error instanceof MloraError)) throw error;
      if (this.#fault === null) this.notice(`${textOf(error)}; training continues, and what it holds waits`);
      this.#fault = error;
    }
  }

  end(): void {
    this.write();
    const lost = this.#lost + [...this.#of.values()].flat().length;
    if (lost > 0 && this.#fault !== null) this.notice(`${textOf(this.#fault)}; ${count(lost)} of its last records are missing`);
  }
}

/** TensorBoard's files, a run for each adapter: `tensorboard --logdir OUTPUT/tb`. */
export function tensorboard(plan: Plan, output: string, notice: (text: string) => void): Tracking {
  const waiting = new Waiting(output, notice);
  const files = new Map<string, string>();
  const began = Math.floor(wallTime() / 1000);
  const listener: Listener = (event) => {
    const found = scalarsOf(event, (index) => plan.adapters[index]!.stepsPerEpoch);
    if (!found) return;
    const { adapter, step, scalars } = found;
    const at = { wallTime: wallTime() / 1000 };
    let file = files.get(adapter);
    if (file === undefined) {
      file = join(output, TENSORBOARD, adapter, `events.out.tfevents.${began}.mlora.${process.pid}.${files.size}`);
      files.set(adapter, file);
      waiting.add(file, versionRecord(at));
      waiting.add(file, startRecord(at, event.type === "step" ? step : step + 1)); // the step of an evaluation is made already
    }
    waiting.add(file, scalarsRecord(at, step, scalars));
  };
  return { listener, write: () => waiting.write(), flush: () => waiting.end() };
}

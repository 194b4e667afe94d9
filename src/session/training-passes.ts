// Training passes of the primitives over the stages: one forward, one backward (1F1B). A stage is sent a pass's backward after
// the forwards of as many later passes as there are stages after it, so that it computes these while the gradient is made.

import { range } from "../base/shape.ts";
import { type Bus, requestAll } from "../bus/bus.ts";
import type { SequenceLoss } from "../bus/messages.ts";
import type { MicroBatch } from "../schedule/micro-batch.ts";

type Losses = readonly SequenceLoss[];
/** A pass whose backward some stages have not been sent. */
type Sent = {
  readonly pass: number;
  readonly unsent: Set<number>;
  readonly backwards: readonly PromiseWithResolvers<Losses | null>[];
};

export class TrainingPasses {
  readonly #sent: Sent[] = [];
  #passes = 0;

  constructor(private readonly bus: Bus) {}

  /** Resolves with the losses of a pass when all stages are done with it: after that many more, or `finish`. */
  async run(batch: MicroBatch): Promise<Losses> {
    const { stages } = this.bus;
    const pass = this.#passes++;
    const forwards = requestAll(this.bus, { type: "forward", pass, batch });
    const backwards = range(stages).map(() => Promise.withResolvers<Losses | null>());
    this.#sent.push({ pass, unsent: new Set(range(stages)), backwards });
    for (const stage of range(stages)) {
      const due = this.#sent.find((of) => of.pass === pass - (stages - 1 - stage));
      if (due) this.#backward(due, stage);
    }
    const [losses] = await Promise.all([Promise.all(backwards.map(({ promise }) => promise)), forwards]);
    return losses.at(-1)!;
  }

  /** No further pass is at hand: those under way are sent back through all stages. */
  finish(): void {
    for (const of of [...this.#sent]) for (const stage of range(this.bus.stages)) this.#backward(of, stage);
  }

  #backward(of: Sent, stage: number): void {
    if (!of.unsent.delete(stage)) return;
    of.backwards[stage]!.resolve(this.bus.request(stage, { type: "backward", pass: of.pass, logProbs: true }));
    if (of.unsent.size === 0) this.#sent.splice(this.#sent.indexOf(of), 1);
  }
}

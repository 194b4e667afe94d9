// Training passes of the primitives over the stages: one forward, one backward (1F1B). A stage is sent a pass's backward after
// the forwards of as many later passes as there are stages after it, so that it computes these while the gradient is made.
// It is asked right after that for the squares of gradients that are complete then: a step would ask for them after all that
// the stage has been sent meanwhile, and wait for a pass or two.

import { range } from "../../base/shape.ts";
import { type Bus, requestAll } from "../../bus/bus.ts";
import type { SequenceLoss } from "../../bus/messages.ts";
import type { MicroBatch } from "../../schedule/micro-batch.ts";

type Losses = readonly SequenceLoss[];
/** The squares of an adapter's gradients, tensor by tensor, of each stage. */
export type Squares = readonly Float32Array[];
/** An adapter whose last micro-batch of a call is in a pass; `ended` is given its squares as they are after the pass. */
export type Ended = { readonly slot: number; readonly ended?: (squares: Promise<Squares>) => void };

/** What a stage is asked for after a pass's forward. */
type Answers = { readonly losses: Losses | null; readonly squares: Promise<Squares> };
/** A pass whose backward some stages have not been sent. */
type Sent = {
  readonly pass: number;
  readonly slots: readonly number[];
  readonly unsent: Set<number>;
  readonly backwards: readonly PromiseWithResolvers<Answers>[];
};

export class TrainingPasses {
  readonly #sent: Sent[] = [];
  #passes = 0;

  constructor(private readonly bus: Bus) {}

  /** Resolves with the losses of a pass when all stages are done with it: after that many more, or `finish`. */
  async run(batch: MicroBatch, ends: readonly Ended[] = []): Promise<Losses> {
    const asked = ends.filter(({ ended }) => ended);
    const { stages } = this.bus;
    const pass = this.#passes++;
    const forwards = requestAll(this.bus, { type: "forward", pass, batch });
    const backwards = range(stages).map(() => Promise.withResolvers<Answers>());
    this.#sent.push({ pass, slots: asked.map(({ slot }) => slot), unsent: new Set(range(stages)), backwards });
    for (const stage of range(stages)) {
      const due = this.#sent.find((of) => of.pass === pass - (stages - 1 - stage));
      if (due) this.#backward(due, stage);
    }
    const [answers] = await Promise.all([Promise.all(backwards.map(({ promise }) => promise)), forwards]);
    for (const [i, { ended }] of asked.entries())
      ended?.(Promise.all(answers.map(({ squares }) => squares)).then((all) => all.map((of) => of[i]!)));
    return answers.at(-1)!.losses!;
  }

  /** No further pass is at hand: those under way are sent back through all stages. */
  finish(): void {
    for (const of of [...this.#sent]) for (const stage of range(this.bus.stages)) this.#backward(of, stage);
  }

  #backward(of: Sent, stage: number): void {
    if (!of.unsent.delete(stage)) return;
    const { pass, slots } = of;
    const losses = this.bus.request(stage, { type: "backward", pass, logProbs: true });
    const squares =
      slots.length === 0 ? Promise.resolve([]) : this.bus.request(stage, { type: "squares", adapters: [...slots] });
    squares.catch(() => undefined); // the pass has failed, too, or the step that waits for them does
    of.backwards[stage]!.resolve(losses.then((found) => ({ losses: found, squares })));
    if (of.unsent.size === 0) this.#sent.splice(this.#sent.indexOf(of), 1);
  }
}

// Answers of adapters of a run: in their slots, next to others' answers and training passes.

import type { Bus } from "../../bus/bus.ts";
import type { AdapterPlan, Plan } from "../../plan/plan.ts";
import type { Row } from "../../schedule/pack.ts";
import { engineOf, isFollowed } from "../decoding/generation-engine.ts";
import { PassTurns } from "../decoding/pass-turns.ts";
import { Sampler } from "../decoding/sampler.ts";
import { Shares } from "../decoding/shares.ts";
import { runThrough } from "../evaluation/evaluate.ts";
import type { AdapterState } from "../scheduling/adapter-state.ts";
import { type Answering, RolloutMaker, type Rollouts, type ScoreOptions } from "./rollouts.ts";

/** In place of a slot: the base model by itself. */
const BASE = -1;

export class RunAnswers {
  readonly #sampler: Sampler;
  readonly #maker: RolloutMaker;

  /** Throws a RequestError where the model's tokenizer cannot be read. */
  constructor(
    private readonly bus: Bus,
    private readonly plan: Plan,
    notice: (adapter: AdapterPlan, text: string) => void,
  ) {
    this.#sampler = new Sampler(engineOf(bus, plan)!, new PassTurns(), new Shares());
    const { tokensPerMicrobatch } = plan;
    this.#maker = new RolloutMaker({ path: plan.recipe.model.path, tokensPerMicrobatch, notice });
  }

  /** The answers for an adapter's next steps, as RolloutMaker makes them. */
  make({ plan, data, steps: from, slot }: AdapterState, signal: AbortSignal): Promise<Rollouts> {
    const on: Answering = {
      answer: (all, signal) => {
        const sequences = all.map((of) => ({ ...of, adapter: slot!, owner: plan.name, isFollowed: isFollowed(plan) }));
        return this.#sampler.run(sequences, signal);
      },
      logProbs: (of, rows, asked) => this.#logProbs(of === "base" ? BASE : slot!, rows, asked),
    };
    return this.#maker.make({ plan, train: data.train, from }, on, signal);
  }

  async #logProbs(slot: number, rows: readonly Row[], { temperature, batchSize }: ScoreOptions): Promise<Float32Array[]> {
    const asked = { objective: { name: "sft" }, references: null, logProbs: true, temperature } as const;
    const found = new Array<Float32Array>(rows.length);
    for (const { rows: of, losses } of await runThrough(this.bus, this.plan, { slot, samples: rows, batchSize, ...asked })
      .result)
      for (const [i, row] of of.entries()) {
        let target = 0;
        const own = losses[i]!.logProbs!;
        found[row] = Float32Array.from(rows[row]!.mask, (is, at) => (at > 0 && is === 1 ? own[target++]! : 0));
      }
    return found;
  }
}

// What schedules cost, compared with the paper's formulas and with bounds that no schedule can pass.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { maxOf, range, sum } from "../../src/base/shape.ts";
import {
  inTurn,
  listsOf,
  type PackedBatch,
  type PipelineAction,
  ROW_TIMES,
  type ScheduleKind,
  type StageAction,
  type Times,
} from "../../src/schedule/lists.ts";
import { pipeline } from "../../src/schedule/pipeline.ts";
import { bubbleRatio, type Simulation, type Span, simulate } from "../../src/schedule/simulate.ts";
import type { Work } from "../../src/schedule/steps.ts";
import { actionsOf, equalWork, joiningOf, limitsOf, randomCase, randomTimes } from "../helpers/works.ts";

const STAGES = range(8).map((i) => i + 1);
const ADAPTERS = range(12).map((i) => i + 1);
const CUTS = range(8).map((i) => i + 1);

type Crowd = { readonly kind: ScheduleKind; readonly stages: number; readonly adapters: number; readonly cuts: number };

/** What is other than one buffer, a row's usual times, and the memory that 1F1B needs. */
type Room = { readonly sendBuffers?: number; readonly times?: Times; readonly inFlight?: readonly number[] };

/** Adapters with `steps` mini-batches of `cuts` micro-batches of 8 rows, one micro-batch a pass. */
function equalPasses({ kind, stages, adapters, cuts }: Crowd, steps: number, capacity: Room = {}): Simulation {
  const { sendBuffers = 1, times = ROW_TIMES, inFlight = range(stages).map((stage) => stages - stage) } = capacity;
  const limits = { tokensPerMicrobatch: 8, passRows: 8, rowTile: 8 };
  const works = range(adapters).map(() => equalWork(cuts, 8, steps));
  const options = { kind, packing: "alone", stages, inFlight, sendBuffers, times, ...limits } as const;
  return simulate(pipeline(joiningOf(works), options), { stages, times, sendBuffers });
}

/**
 * The idle share of what more steps of all adapters add: filling the pipeline, draining it, and adapters that start a little
 * later than the others cost the same however many steps there are. What is left is the steady state, which the formulas are
 * about, exactly.
 */
function marginalBubble(crowd: Crowd, capacity: Room = {}): number {
  const [less, more] = [equalPasses(crowd, 8, capacity), equalPasses(crowd, 16, capacity)];
  return 1 - (sum(more.busy) - sum(less.busy)) / (crowd.stages * (more.makespan - less.makespan));
}

describe("passes of unequal times that no estimate knows", () => {
  test("hardly make stages wait: each keeps a pass of lead", () => {
    const [stages, adapters] = [2, 4];
    for (const estimated of [0.99, 1, 1.01])
      for (const spread of [0.06, 0.12]) {
        // The first adapter's passes take the least, the last one's the most, as their ranks grow.
        const own = ({ segments }: PackedBatch) => 1 + spread * ((2 * segments[0]!.adapter) / (adapters - 1) - 1);
        const times: Times = {
          ...{ forward: (_, pass) => pass.rows * own(pass), backward: (_, pass) => 1.1 * pass.rows * own(pass) },
          ...{ step: () => 0, transfer: () => 0 },
        };
        const guessed: Times = { ...ROW_TIMES, forward: (stage, { rows }) => (stage === 0 ? estimated * rows : rows) };
        const works = range(adapters).map(() => equalWork(1, 8, 60));
        const limits = { tokensPerMicrobatch: 8, passRows: 8, rowTile: 8, sendBuffers: 2 };
        const options = { kind: "lorapp", packing: "balanced", stages, inFlight: [4, 2], ...limits } as const;
        const found = simulate(pipeline(joiningOf(works), { ...options, times: guessed }), { stages, times, sendBuffers: 2 });
        expect(found.steadyBubble!, `estimated ${estimated}, spread ${spread}`).toBeLessThan(0.005);
      }
  });
});

describe("equal passes", () => {
  test("of gpipe and of one adapter in 1F1B idle (D - 1) / (N + D - 1): each flush by itself, so the whole run", () => {
    for (const stages of STAGES)
      for (const cuts of CUTS)
        for (const kind of ["gpipe", "1f1b"] as const) {
          const { bubble } = equalPasses({ kind, stages, cuts, adapters: 1 + (cuts % 3) }, 3);
          expect(bubble).toBeCloseTo((stages - 1) / (cuts + stages - 1), 12);
          expect(bubbleRatio(stages, 1, cuts)).toBeCloseTo(bubble, 12);
        }
  });

  test("of adapters whose mini-batches are not cut idle max((D - L) / D, 0)", () => {
    for (const stages of STAGES)
      for (const adapters of ADAPTERS) {
        const ratio = Math.max((stages - adapters) / stages, 0);
        expect(bubbleRatio(stages, adapters, 1)).toBeCloseTo(ratio, 12);
        for (const sendBuffers of [1, 2])
          expect(marginalBubble({ kind: "lorapp", stages, adapters, cuts: 1 }, { sendBuffers })).toBeCloseTo(ratio, 12);
      }
  });

  test("of cut mini-batches idle as the formula says, whatever forward and backward cost", () => {
    const times: Times = { ...ROW_TIMES, forward: (_, { rows }) => 3 * rows, backward: (_, { rows }) => 3 * rows };
    for (const stages of STAGES)
      for (const adapters of [1, 2, 3, 5])
        for (const cuts of CUTS)
          for (const of of [ROW_TIMES, times]) {
            const idle = marginalBubble({ kind: "lorapp", stages, adapters, cuts }, { times: of });
            expect(idle).toBeCloseTo(bubbleRatio(stages, adapters, cuts), 12);
          }
  });

  test("idle no less than the formula says with more buffers; none idles where there is work enough", () => {
    // With a second buffer a forward can go ahead of an older adapter's backward, which then takes longer: that costs where
    // work is short. On unequal passes it gains (docs/measurements/schedule.md), so stages fill first all the same.
    for (const stages of STAGES)
      for (const adapters of [2, 3, 4])
        for (const cuts of CUTS) {
          const ratio = bubbleRatio(stages, adapters, cuts);
          const idle = marginalBubble({ kind: "lorapp", stages, adapters, cuts }, { sendBuffers: 2 });
          expect(idle).toBeGreaterThan(ratio - 1e-12);
          expect(idle).toBeLessThan(ratio === 0 ? 1e-12 : ratio + 0.1);
        }
  });

  test("of twice as many adapters as stages hide transfers that take no longer than a forward", () => {
    for (const stages of STAGES)
      for (const segment of [0.3, 1]) {
        const times: Times = { ...ROW_TIMES, transfer: (_, { rows }) => segment * rows };
        const crowd = { kind: "lorapp", stages, adapters: 2 * stages, cuts: 1 } as const;
        const inFlight = range(stages).map((stage) => 2 * stages - stage);
        expect(marginalBubble(crowd, { times, inFlight })).toBeCloseTo(0, 12);
      }
  });

  test("of at least as many adapters as stages leave no bubble between fill and drain", () => {
    for (const stages of STAGES)
      for (const adapters of ADAPTERS.filter((adapters) => adapters >= stages))
        for (const cuts of [1, 2, 5]) {
          const { steadyBubble, makespan, lowerBound } = equalPasses({ kind: "lorapp", stages, adapters, cuts }, 6, {
            sendBuffers: 2,
          });
          expect(steadyBubble).toBeCloseTo(0, 12);
          expect(makespan).toBeCloseTo(lowerBound, 9);
        }
  });
});

/** With an action for each adapter's step. */
const oneByOne = (actions: readonly StageAction[]): StageAction[] =>
  actions.flatMap(({ stage, action }): StageAction[] =>
    action.kind === "step"
      ? action.steps.map((step) => ({ stage, action: { kind: "step", steps: [step] } }))
      : [{ stage, action }],
  );

describe("any passes", () => {
  const simulated = (rng: Rng) => {
    const one = randomCase(rng);
    const { stages, sendBuffers } = one.options;
    const actions = actionsOf(one);
    return { one, actions, options: { stages, sendBuffers, times: one.options.times! } };
  };

  test("take no less than the lower bound, also with other times than they were planned with", () => {
    const rng = new Rng(51);
    for (let i = 0; i < 150; i++) {
      const { actions, options } = simulated(rng);
      for (const [times, made] of [
        [options.times, actions],
        [randomTimes(rng), actions],
        [randomTimes(rng), oneByOne(actions)],
      ] as const) {
        const { makespan, lowerBound } = simulate(made, { ...options, times });
        expect(lowerBound).toBeGreaterThan(0);
        expect(makespan).toBeGreaterThanOrEqual(lowerBound * (1 - 1e-12));
      }
    }
  });

  test("keep each stage busy for what its actions take, one after the other, and hold no more passes than there is memory for", () => {
    const rng = new Rng(52);
    for (let i = 0; i < 150; i++) {
      const { one, actions, options } = simulated(rng);
      const { stages, times } = options;
      const spans: Span[][] = range(stages).map(() => []);
      const result = simulate(actions, { ...options, onSpan: (span) => spans[span.stage]!.push(span) });
      const takes = (stage: number, action: PipelineAction) =>
        action.kind === "step" ? times.step(stage, action.steps) : times[action.kind](stage, action.pass);
      for (const [stage, list] of listsOf(actions, stages).entries()) {
        expect(result.busy[stage]).toBeCloseTo(sum(list.map((action) => takes(stage, action))), 6);
        expect(spans[stage]!.map(({ kind }) => kind)).toEqual(list.map(({ kind }) => kind));
        for (const [at, { start, end }] of spans[stage]!.entries()) {
          expect(end - start).toBeCloseTo(takes(stage, list[at]!), 6);
          if (at > 0) expect(start).toBeGreaterThanOrEqual(spans[stage]![at - 1]!.end);
        }
        expect(result.peakPasses[stage]).toBeLessThanOrEqual(limitsOf(one).inFlight[stage]!);
      }
      expect(result.makespan).toBe(maxOf(spans.flat().map(({ end }) => end)));
      expect(result.bubble).toBeCloseTo(1 - sum(result.busy) / (stages * result.makespan), 12);
      const forwards = actions.flatMap(({ stage, action }) => (stage === 0 && action.kind === "forward" ? [action.pass] : []));
      expect([result.passes, result.rows]).toEqual([forwards.length, sum(forwards.map(({ rows }) => rows))]);
    }
  });

  test("take as long in whatever order the stages are listed in, and no longer with more buffers or a quicker action", () => {
    const rng = new Rng(53);
    for (let i = 0; i < 100; i++) {
      const { actions, options } = simulated(rng);
      const { makespan } = simulate(actions, options);
      expect(simulate(inTurn(listsOf(actions, options.stages)), options).makespan).toBe(makespan);
      const more = simulate(actions, { ...options, sendBuffers: options.sendBuffers + 1 + rng.below(3) });
      const free = simulate(actions, { stages: options.stages, times: options.times });
      expect(more.makespan).toBeLessThanOrEqual(makespan);
      expect(free.makespan).toBeLessThanOrEqual(more.makespan);
      const quick = rng.below(options.stages);
      const { times } = options;
      const quicker: Times = {
        ...times,
        forward: (stage, pass) => times.forward(stage, pass) * (stage === quick && pass.id % 3 === 0 ? 0.5 : 1),
      };
      expect(simulate(actions, { ...options, times: quicker }).makespan).toBeLessThanOrEqual(makespan);
    }
  });

  test("never wait for a step: without steps that cost nothing they take as long", () => {
    const rng = new Rng(54);
    for (let i = 0; i < 150; i++) {
      const { actions, options } = simulated(rng);
      const times = { ...(i % 2 === 0 ? options.times : randomTimes(rng)), step: () => 0 };
      const without = actions.filter(({ action }) => action.kind !== "step");
      expect(simulate(without, { ...options, times }).makespan).toBe(simulate(actions, { ...options, times }).makespan);
    }
  });

  test("one pass takes its way there and back", () => {
    const rng = new Rng(55);
    for (const stages of STAGES) {
      const times: Times = { ...randomTimes(rng), step: () => 0 };
      const options = {
        kind: "lorapp",
        packing: "alone",
        stages,
        inFlight: range(stages).map(() => 1),
        sendBuffers: 1,
      } as const;
      const actions = [
        ...pipeline(joiningOf([equalWork(1, 9, 1)]), { ...options, tokensPerMicrobatch: 9, passRows: 9, rowTile: 9, times }),
      ];
      const pass = actions.flatMap(({ action }) => (action.kind === "forward" ? [action.pass] : []))[0]!;
      const computing = range(stages).map((stage) => times.forward(stage, pass) + times.backward(stage, pass));
      const ways = range(stages - 1).map(
        (link) => times.transfer(link, pass, "forward") + times.transfer(link, pass, "backward"),
      );
      const { makespan, lowerBound } = simulate(actions, { stages, times });
      expect(makespan).toBeCloseTo(sum([...computing, ...ways]), 9);
      expect(lowerBound).toBeCloseTo(makespan, 9);
    }
  });

  test("a step may be made while the last gradients are on their way back: the lower bound allows for it", () => {
    const segments = (adapter: number) => [{ adapter, step: 0, rows: [0], firstRow: 0, miniBatch: [0], last: true }];
    const [a, b] = [0, 1].map((id) => ({ id, rows: 1, segments: segments(id) }));
    const steps = [0, 1].map((adapter) => ({ kind: "step", steps: [{ adapter, step: 0 }] }) as const);
    const list = [
      { kind: "forward", pass: a! },
      { kind: "forward", pass: b! },
      { kind: "backward", pass: a! },
      { kind: "backward", pass: b! },
      ...steps,
    ] as const;
    const times: Times = { forward: () => 1, backward: () => 1, step: (stage) => stage, transfer: () => 0 };
    const { makespan, lowerBound } = simulate(inTurn([list, list]), { stages: 2, times });
    expect(makespan).toBe(7); // 3 until the second stage turns round, 2 for its backwards, 1 for each of its steps
    expect(lowerBound).toBeLessThanOrEqual(makespan);
  });
});

/** Tokens of short questions with worked answers, about as they come: most near 170, a few three times as long. */
function lengths(rng: Rng, rows: number): number[] {
  const spread = Math.sqrt(Math.log(1 + (72 / 186) ** 2));
  const draw = () => Math.round(Math.exp(Math.log(186) - spread ** 2 / 2 + spread * rng.normal()));
  return range(rows).map(() => Math.min(539, Math.max(50, draw())));
}

describe("the balanced order of unequal micro-batches", () => {
  for (const stages of [4, 8])
    test(`is within 5 % of the lower bound on ${stages} stages with spare passes`, () => {
      const rng = new Rng(56, stages);
      for (const adapters of [4, 5, 6, 7, 8, 10, 12, 16])
        for (const rowTile of [24, 128]) {
          const works = range(adapters).map((): Work => {
            const all = { batchSize: 8, accumulation: 1, epochs: 1, steps: null, shuffle: true, seed: rng.bits() };
            return { ...all, lengths: lengths(rng, 400) };
          });
          const inFlight = range(stages).map((stage) => 2 * stages - stage);
          const limits = { tokensPerMicrobatch: 400, passRows: 4096, rowTile };
          const options = { kind: "lorapp", packing: "balanced", stages, inFlight, sendBuffers: 2, ...limits } as const;
          const { makespan, lowerBound } = simulate(pipeline(joiningOf(works), options), {
            stages,
            times: ROW_TIMES,
            sendBuffers: 2,
          });
          expect(makespan / lowerBound).toBeLessThanOrEqual(1.05);
        }
    });
});

// The lists of a pipeline: what holds for any crowd, any number of stages and any times. What verify.ts proves of lists is
// tested in verify.test.ts; here the lists are walked by hand as well.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { alignUp, range, sum } from "../../src/base/shape.ts";
import { closest, targetRows } from "../../src/schedule/balance.ts";
import { listsOf, type PackedBatch, type PipelineAction, type StageAction } from "../../src/schedule/lists.ts";
import { type Joining, pipeline } from "../../src/schedule/pipeline.ts";
import type { SegmentRef } from "../../src/schedule/segments.ts";
import { totalSteps, type Work } from "../../src/schedule/steps.ts";
import { verify } from "../../src/schedule/verify.ts";
import { actionsOf, type Case, equalWork, joiningOf, limitsOf, randomCase } from "../helpers/works.ts";

type PassAction = Extract<PipelineAction, { pass: PackedBatch }>;

const passesOf = (list: readonly PipelineAction[], kind: PassAction["kind"]): PackedBatch[] =>
  list.flatMap((action) => (action.kind === kind ? [action.pass] : []));
const sharesOf = (passes: readonly PackedBatch[], adapter: number): SegmentRef[] =>
  passes.flatMap(({ segments }) => segments.filter((segment) => segment.adapter === adapter));
const forwardsOf = (actions: readonly StageAction[]): PackedBatch[] =>
  passesOf(
    actions.filter(({ stage }) => stage === 0).map(({ action }) => action),
    "forward",
  );
const rowsOf = (work: Work, rowTile: number, { rows }: SegmentRef): number =>
  alignUp(sum(rows.map((row) => work.lengths[row]!)), rowTile);

/** What an adapter trains by itself on one stage, a micro-batch a pass. */
function alone({ works, options }: Case, adapter: number, from = 0): SegmentRef[] {
  const only = { kind: "lorapp", packing: "alone", stages: 1, inFlight: [1], sendBuffers: 1, passRows: 1 } as const;
  const { tokensPerMicrobatch, rowTile } = options;
  return forwardsOf([
    ...pipeline([{ adapter, work: works[adapter]!, from }], { ...only, tokensPerMicrobatch, rowTile }),
  ]).flatMap(({ segments }) => segments);
}

/** Steps that each adapter makes in a list, in order. */
const stepsIn = (list: readonly PipelineAction[], adapter: number): number[] =>
  list.flatMap((action) =>
    action.kind === "step" ? action.steps.filter((step) => step.adapter === adapter).map(({ step }) => step) : [],
  );

describe("the lists of a pipeline", () => {
  test("pass the check, and train each adapter's micro-batches on every stage as it would alone", () => {
    const rng = new Rng(11);
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng);
      const actions = actionsOf(one);
      expect(verify(actions, limitsOf(one))).toBeNull();
      for (const list of listsOf(actions, one.options.stages))
        for (const adapter of one.works.keys()) {
          const own = alone(one, adapter);
          expect(sharesOf(passesOf(list, "forward"), adapter)).toEqual(own);
          expect(sharesOf(passesOf(list, "backward"), adapter)).toEqual(own);
          expect(stepsIn(list, adapter)).toEqual(range(totalSteps(one.works[adapter]!)));
        }
    }
  });

  test("never begin a mini-batch before the adapter's last step, and step after its last backward", () => {
    const rng = new Rng(12);
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng);
      for (const list of listsOf(actionsOf(one), one.options.stages)) {
        const made = one.works.map(() => 0);
        const complete = one.works.map(() => 0); // mini-batches whose last backward is done
        for (const action of list)
          if (action.kind === "step")
            for (const { adapter, step } of action.steps) {
              expect([made[adapter]!, complete[adapter]!]).toEqual([step, step + 1]);
              made[adapter]!++;
            }
          else
            for (const { adapter, step, last } of action.pass.segments) {
              expect(step).toBe(made[adapter]!);
              if (action.kind === "backward" && last) complete[adapter]!++;
            }
      }
    }
  });

  test("have passes within their size, with one micro-batch of an adapter at most, numbered in the order in which they begin", () => {
    const rng = new Rng(13);
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng, { firstPass: rng.below(3) * rng.below(1000) });
      const { passRows, rowTile, kind, packing, firstPass } = one.options;
      const passes = passesOf(listsOf(actionsOf(one), one.options.stages)[0]!, "forward");
      expect(passes.map(({ id }) => id)).toEqual(range(passes.length).map((at) => firstPass! + at));
      for (const { segments, rows } of passes) {
        expect(rows).toBe(sum(segments.map((segment) => rowsOf(one.works[segment.adapter]!, rowTile, segment))));
        expect(rows <= passRows || segments.length === 1).toBe(true);
        expect(new Set(segments.map(({ adapter }) => adapter)).size).toBe(segments.length);
        if (kind !== "lorapp" || packing === "alone") expect(segments.length).toBe(1);
      }
    }
  });

  test("of the baselines train one adapter after the other and flush each mini-batch; gpipe turns round once in it", () => {
    const rng = new Rng(14);
    for (const kind of ["1f1b", "gpipe"] as const)
      for (let i = 0; i < 40; i++) {
        const one = randomCase(rng, { kind });
        for (const list of listsOf(actionsOf(one), one.options.stages)) {
          const flushes: { readonly name: string; readonly turns: string[] }[] = [];
          for (const action of list) {
            if (action.kind === "step") continue;
            const { adapter, step } = action.pass.segments[0]!;
            const name = `${adapter}.${step}`;
            if (flushes.at(-1)?.name !== name) flushes.push({ name, turns: [] });
            const { turns } = flushes.at(-1)!;
            if (turns.at(-1) !== action.kind) turns.push(action.kind);
          }
          const all = one.works.flatMap((work, adapter) => range(totalSteps(work)).map((step) => `${adapter}.${step}`));
          expect(flushes.map(({ name }) => name)).toEqual(all);
          if (kind === "gpipe") for (const { turns } of flushes) expect(turns).toEqual(["forward", "backward"]);
        }
      }
  });

  test("are 1F1B where passes are equal and adapters enough: the first stage fills, the last turns each pass round", () => {
    for (const stages of range(8).map((i) => i + 1))
      for (const adapters of [stages, stages + 3]) {
        const works = range(adapters).map(() => equalWork(1, 8, 6));
        const inFlight = range(stages).map((stage) => stages - stage);
        const limits = { tokensPerMicrobatch: 8, passRows: 8, rowTile: 8 };
        const options = { kind: "lorapp", packing: "alone", stages, inFlight, sendBuffers: 1, ...limits } as const;
        for (const [stage, list] of listsOf(pipeline(joiningOf(works), options), stages).entries()) {
          const letters = list.flatMap(({ kind }) => (kind === "step" ? [] : [kind === "forward" ? "F" : "B"])).join("");
          const ahead = stages - stage - 1;
          const pairs = "FB".repeat(6 * adapters - ahead);
          expect(letters).toBe("F".repeat(ahead) + pairs + "B".repeat(ahead));
        }
      }
  });

  test("of one stage fill their passes: whoever is left out would not have fitted", () => {
    const rng = new Rng(15);
    let shared = 0;
    for (let i = 0; i < 100; i++) {
      const packing = i % 2 === 0 ? "filled" : "balanced";
      const one = randomCase(rng, { stages: 1, kind: "lorapp", packing });
      const { passRows, rowTile } = one.options;
      const left = one.works.map((_, adapter) => alone(one, adapter));
      for (const { segments, rows } of forwardsOf(actionsOf(one))) {
        for (const { adapter } of segments) left[adapter]!.shift();
        const absent = [...left.keys()].filter((adapter) => !segments.some((segment) => segment.adapter === adapter));
        for (const adapter of absent) {
          const next = left[adapter]![0];
          if (next) expect(rows + rowsOf(one.works[adapter]!, rowTile, next)).toBeGreaterThan(passRows);
        }
        if (segments.length > 1) shared++;
      }
    }
    expect(shared).toBeGreaterThan(100);
  });
});

describe("adapters that come and go", () => {
  /** Pulls the actions one by one; `act` is notified of each before the next is pulled. */
  function pulled(joining: Joining[], { options }: Case, left: Set<number>, act: (item: StageAction) => void): StageAction[] {
    const actions: StageAction[] = [];
    for (const item of pipeline(joining, { ...options, left: (adapter) => left.has(adapter) })) {
      actions.push(item);
      act(item);
    }
    return actions;
  }
  const begun = ({ stage, action }: StageAction): readonly SegmentRef[] =>
    stage === 0 && action.kind === "forward" ? action.pass.segments : [];

  test("an adapter that leaves begins no further mini-batch, and finishes and steps the one that was begun", () => {
    const rng = new Rng(21);
    let early = 0;
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng);
      const left = new Set<number>();
      const actions = pulled(joiningOf(one.works), one, left, (item) => {
        for (const { adapter, firstRow } of begun(item)) if (firstRow === 0) expect(left.has(adapter)).toBe(false);
        if (rng.below(20) === 0) left.add(rng.below(one.works.length));
      });
      const { steps: _, ...limits } = limitsOf(one);
      expect(verify(actions, limits)).toBeNull();
      for (const adapter of one.works.keys()) {
        const list = listsOf(actions, one.options.stages)[0]!;
        const trained = sharesOf(passesOf(list, "forward"), adapter);
        const own = alone(one, adapter);
        expect(trained).toEqual(own.slice(0, trained.length));
        if (!left.has(adapter)) expect(trained.length).toBe(own.length);
        if (trained.length < own.length) early++;
        expect(stepsIn(list, adapter)).toEqual(trained.filter(({ last }) => last).map(({ step }) => step));
        if (trained.length > 0) expect(trained.at(-1)!.last).toBe(true);
      }
    }
    expect(early).toBeGreaterThan(100);
  });

  test("an adapter that leaves at a step is not in the pass right after it", () => {
    const rng = new Rng(22);
    let ends = 0;
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng);
      const left = new Set<number>();
      pulled(joiningOf(one.works), one, left, (item) => {
        for (const { adapter } of begun(item)) expect(left.has(adapter)).toBe(false);
        const { stage, action } = item;
        if (stage > 0 || action.kind !== "step") return;
        for (const { adapter, step } of action.steps)
          if (rng.below(3) === 0 && step + 1 < totalSteps(one.works[adapter]!)) {
            left.add(adapter);
            ends++;
          }
      });
    }
    expect(ends).toBeGreaterThan(100);
  });

  test("an adapter that joins while the others train is trained like them, and one that left continues where it stopped", () => {
    const rng = new Rng(23);
    let [joined, returned] = [0, 0];
    for (let i = 0; i < 120; i++) {
      const one = randomCase(rng);
      const late = joiningOf(one.works);
      const joining = late.splice(0, 1 + rng.below(late.length));
      const left = new Set<number>();
      const actions: StageAction[] = [];
      const act = ({ stage, action }: StageAction) => {
        if (left.size > 0) {
          // It was let go of with this pull.
          left.clear();
          joining.push(...late.splice(0));
        } else if (rng.below(30) === 0 && late.length > 0) {
          joining.push(late.shift()!);
          joined++;
        }
        const step = stage === 0 && action.kind === "step" ? action.steps[0]! : null;
        if (!step || rng.below(4) > 0) return;
        left.add(step.adapter);
        late.push({ adapter: step.adapter, work: one.works[step.adapter]!, from: step.step + 1 });
        returned++;
      };
      // A pipeline ends with its work; an adapter that joins after that joins another, whose passes are numbered on.
      for (; joining.length > 0; joining.push(...late.splice(0))) {
        const firstPass = forwardsOf(actions).length;
        actions.push(...pulled(joining, { ...one, options: { ...one.options, firstPass } }, left, act));
        left.clear();
      }
      expect(verify(actions, limitsOf(one))).toBeNull();
      const list = listsOf(actions, one.options.stages)[0]!;
      for (const adapter of one.works.keys()) expect(sharesOf(passesOf(list, "forward"), adapter)).toEqual(alone(one, adapter));
    }
    expect(Math.min(joined, returned)).toBeGreaterThan(100);
  });

  test("an adapter that left and came back between two pulls makes each step once", () => {
    const rng = new Rng(25);
    let returned = 0;
    for (let i = 0; i < 60; i++) {
      const one = randomCase(rng, { stages: 1, kind: "lorapp", packing: i % 2 === 0 ? "filled" : "balanced" });
      // the first came twice before the first pull
      const joining = [...joiningOf(one.works), ...joiningOf(one.works).slice(0, 1)];
      const act = ({ action }: StageAction) => {
        if (action.kind !== "step" || rng.below(3) > 0) return;
        const { adapter, step } = action.steps[0]!;
        joining.push({ adapter, work: one.works[adapter]!, from: step + 1 });
        returned++;
      };
      const list = listsOf(pulled(joining, one, new Set(), act), 1)[0]!;
      for (const adapter of one.works.keys()) expect(sharesOf(passesOf(list, "forward"), adapter)).toEqual(alone(one, adapter));
    }
    expect(returned).toBeGreaterThan(100);
  });

  test("an adapter that joins a stage that has room for it is in the next pass", () => {
    const rng = new Rng(24);
    for (let i = 0; i < 60; i++) {
      const one = randomCase(rng, { stages: 1, kind: "lorapp", packing: i % 2 === 0 ? "filled" : "balanced", passRows: 1e6 });
      const late = joiningOf(one.works);
      const joining = late.splice(0, 1);
      let awaited: number[] = [];
      pulled(joining, one, new Set(), (item) => {
        if (item.action.kind !== "forward") return;
        expect(begun(item).map(({ adapter }) => adapter)).toEqual(expect.arrayContaining(awaited));
        awaited = late.slice(0, 1).map(({ adapter }) => adapter);
        joining.push(...late.splice(0, 1));
      });
    }
  });

  test("an adapter that comes from a checkpoint trains the rest of what it would have trained", () => {
    const rng = new Rng(25);
    for (let i = 0; i < 60; i++) {
      const one = randomCase(rng);
      const from = one.works.map((work) => rng.below(totalSteps(work) + 1));
      const joining = one.works.map((work, adapter) => ({ adapter, work, from: from[adapter]! }));
      const actions = [...pipeline(joining, one.options)];
      expect(verify(actions, { ...limitsOf(one), from })).toBeNull();
      const list = listsOf(actions, one.options.stages)[0]!;
      for (const adapter of one.works.keys()) {
        const rest = alone(one, adapter).filter(({ step }) => step >= from[adapter]!);
        expect(sharesOf(passesOf(list, "forward"), adapter)).toEqual(rest);
      }
    }
  });
});

describe("packing for a pipeline", () => {
  test("comes as close to its target as any set of candidates, the first among them", () => {
    const rng = new Rng(31);
    for (let i = 0; i < 200; i++) {
      const candidates = range(1 + rng.below(9)).map(() => ({ rows: 1 + rng.below(30) }));
      const target = 1 + rng.below(90);
      const most = 1 + rng.below(90);
      const first = candidates[0]!.rows;
      const chosen = closest(candidates, target, most);
      expect(chosen[0]).toBe(candidates[0]!);
      expect(new Set(chosen).size).toBe(chosen.length);
      const total = sum(chosen.map(({ rows }) => rows));
      expect(total <= most || chosen.length === 1).toBe(true);
      const others = candidates.slice(1);
      for (const set of range(2 ** others.length)) {
        const rows = first + sum(others.filter((_, at) => (set >> at) & 1).map((candidate) => candidate.rows));
        if (rows <= most && rows <= target) expect(Math.abs(total - target)).toBeLessThanOrEqual(target - rows);
      }
    }
  });

  test("aims at larger passes the more adapters there are, never over what fits", () => {
    const rng = new Rng(32);
    for (let i = 0; i < 200; i++) {
      const [stages, passRows] = [1 + rng.below(8), 100 + rng.below(900)];
      const adapter = { cuts: 1 + rng.below(6), meanRows: 1 + rng.below(100) };
      const targets = range(16).map((more) => targetRows(Array(1 + more).fill(adapter), stages, passRows));
      expect(targets).toEqual(targets.toSorted((a, b) => a - b));
      for (const target of targets) {
        expect(target).toBeLessThanOrEqual(passRows);
        expect(target).toBeGreaterThanOrEqual(adapter.meanRows);
      }
      if (stages === 1) expect(new Set(targets)).toEqual(new Set([passRows]));
    }
  });
});

describe("which adapters are in the next pass", () => {
  const LIMITS = { kind: "lorapp", packing: "balanced", stages: 4, inFlight: [8, 7, 6, 5], sendBuffers: 2 } as const;
  const joining = (works: readonly Work[], priorities: readonly number[]): Joining[] =>
    works.map((work, adapter) => ({ adapter, work, from: 0, priority: priorities[adapter]! }));
  /** Of the first `count` passes, in which each adapter was. */
  const turns = (works: readonly Work[], priorities: readonly number[], passes: number): number[] => {
    const counts = works.map(() => 0);
    let seen = 0;
    for (const { stage, action } of pipeline(joining(works, priorities), {
      ...LIMITS,
      tokensPerMicrobatch: 64,
      passRows: 64,
      rowTile: 1,
    })) {
      if (stage !== 0 || action.kind !== "forward") continue;
      if (++seen > passes) break;
      for (const { adapter } of action.pass.segments) counts[adapter]!++;
    }
    return counts;
  };

  test("an adapter with a short way gets its turn among many with long ones", () => {
    const works = range(12).map((i) => equalWork(1 + (i % 3), 40, i === 7 ? 30 : 1_000_000));
    const counts = turns(
      works,
      works.map(() => 0),
      2_000,
    );
    expect(counts[7]).toBe(2 * 30);
  });

  test("a higher priority goes as fast as it can", () => {
    const works = range(12).map(() => equalWork(1, 40, 1_000_000));
    const equal = turns(
      works,
      works.map(() => 0),
      1_200,
    );
    expect(Math.max(...equal) / Math.min(...equal)).toBeLessThan(1.1);
    const first = turns(
      works,
      works.map((_, i) => Number(i === 3)),
      1_200,
    );
    expect(first[3]! / Math.max(...first.filter((_, i) => i !== 3))).toBeGreaterThan(1.5);
    expect(Math.min(...first)).toBeGreaterThan(10);
  });
});

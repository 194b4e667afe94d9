// Lists that must not be carried out are refused, whatever is wrong with them: good lists are damaged at random, in ways of
// which each changes what is trained, or makes stages wait for ever.

import { describe, expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { inTurn, listsOf, type PackedBatch, type PipelineAction } from "../../src/schedule/lists.ts";
import { verify } from "../../src/schedule/verify.ts";
import { DAMAGES, pick } from "../helpers/damage.ts";
import { actionsOf, type Case, limitsOf, randomCase } from "../helpers/works.ts";

const stagesIn = (message: string): number[] => [...message.matchAll(/stage (\d+)/g)].map(([, stage]) => Number(stage));
const goodLists = (rng: Rng, changes: Partial<Case["options"]> = {}) => {
  const one = randomCase(rng, changes);
  return { lists: listsOf(actionsOf(one), one.options.stages), limits: limitsOf(one) };
};

describe("what is refused:", () => {
  for (const [i, [name, damage]] of Object.entries(DAMAGES).entries())
    test(name, () => {
      const rng = new Rng(41, i);
      let damaged = 0;
      for (let n = 0; n < 80; n++) {
        const { lists, limits } = goodLists(rng);
        expect(verify(inTurn(lists), limits)).toBeNull();
        const bad = damage(lists, limits, rng);
        if (!bad) continue;
        damaged++;
        const message = verify(inTurn(bad.lists), bad.limits);
        expect(message).toMatch(/stage \d/);
        // A neighbour may be the first to notice.
        if (bad.stage !== null) expect(stagesIn(message!).some((stage) => Math.abs(stage - bad.stage!) <= 1)).toBe(true);
      }
      expect(damaged).toBeGreaterThan(15);
    });
});

test("whatever is accepted trains the same: lists with actions moved about at random", () => {
  const rng = new Rng(44);
  let [accepted, refused] = [0, 0];
  for (let i = 0; i < 400; i++) {
    const { lists, limits } = goodLists(rng, { kind: "lorapp" });
    const stage = rng.below(lists.length);
    const list = [...lists[stage]!];
    for (let moves = 1 + rng.below(3); moves > 0; moves--) {
      const at = rng.below(list.length);
      const [action] = list.splice(at, 1);
      list.splice(Math.max(0, at - 3 + rng.below(7)), 0, action!);
    }
    if (verify(inTurn(lists.with(stage, list)), limits) !== null) refused++;
    else {
      accepted++;
      for (const adapter of limits.steps!.keys()) {
        for (const kind of ["forward", "backward"] as const)
          expect(sharesIn(list, kind, adapter)).toEqual(sharesIn(lists[stage]!, kind, adapter));
        const story = storyOf(list, adapter);
        expect(story).toEqual(story.toSorted((a, b) => a - b));
        expect(story.length).toBe(storyOf(lists[stage]!, adapter).length);
      }
    }
  }
  expect(Math.min(accepted, refused)).toBeGreaterThan(50);
});

const sharesIn = (list: readonly PipelineAction[], kind: "forward" | "backward", adapter: number) =>
  list.flatMap((action) => (action.kind === kind ? action.pass.segments.filter((segment) => segment.adapter === adapter) : []));

/** What happens to an adapter, by the steps that it has made: n in its step n, n + 1/2 at the end of it. */
const storyOf = (list: readonly PipelineAction[], adapter: number): number[] =>
  list.flatMap((action) =>
    action.kind === "step"
      ? action.steps.filter((of) => of.adapter === adapter).map(({ step }) => step + 0.5)
      : action.pass.segments.filter((of) => of.adapter === adapter).map(({ step }) => step),
  );

describe("what means the same", () => {
  test("is accepted, however the lists are interleaved, with more room, and with steps one by one", () => {
    const rng = new Rng(42);
    for (let i = 0; i < 100; i++) {
      const { lists, limits } = goodLists(rng);
      const oneByOne = lists.map((list) =>
        list.flatMap((action): PipelineAction[] =>
          action.kind === "step" ? action.steps.map((step) => ({ kind: "step", steps: [step] })) : [action],
        ),
      );
      const rest = oneByOne.map((list) => [...list]);
      const told = rng.shuffle(oneByOne.flatMap((list, stage) => list.map(() => stage)));
      const more = {
        ...limits,
        sendBuffers: limits.sendBuffers + rng.below(3),
        inFlight: limits.inFlight.map((n) => n + rng.below(2)),
      };
      expect(
        verify(
          told.map((stage) => ({ stage, action: rest[stage]!.shift()! })),
          more,
        ),
      ).toBeNull();
    }
  });

  test("a forward and a backward may change places, unless a neighbour has them in the order that was: both would wait", () => {
    const rng = new Rng(43);
    let [accepted, refused] = [0, 0];
    for (let i = 0; i < 600; i++) {
      const { lists, limits } = goodLists(rng, { stages: 1 + rng.below(4) });
      const free = { ...limits, sendBuffers: Number.POSITIVE_INFINITY, inFlight: lists.map(() => Number.POSITIVE_INFINITY) };
      const stage = rng.below(lists.length);
      const list = lists[stage]!;
      const at = pick(
        rng,
        range(list.length - 1).filter((at) => turnsAt(list, at)),
      );
      if (at === undefined) continue;
      const [first, second] = [list[at]!, list[at + 1]!];
      const neighbour = lists[first.kind === "forward" ? stage + 1 : stage - 1];
      const waits = neighbour !== undefined && indexOf(neighbour, first) < indexOf(neighbour, second);
      const message = verify(inTurn(lists.with(stage, list.with(at, second).with(at + 1, first))), free);
      if (waits) {
        expect(message).toMatch(/nothing can continue.*stage \d/);
        refused++;
      } else {
        expect(message).toBeNull();
        accepted++;
      }
    }
    expect(Math.min(accepted, refused)).toBeGreaterThan(50);
  });

  test("forwards may run ahead as far as there are buffers: those of both ways, and the pass that each stage holds", () => {
    for (const buffers of [1, 2, 3, 5])
      for (const ahead of range(16).map((i) => i + 1)) {
        const miniBatch = { step: 0, rows: [0], firstRow: 0, miniBatch: [0], last: true };
        const passes = range(ahead).map((id): PackedBatch => ({ id, rows: 1, segments: [{ ...miniBatch, adapter: id }] }));
        const forwards = passes.map((pass) => ({ kind: "forward", pass }) as const);
        const backwards = passes.map((pass) => ({ kind: "backward", pass }) as const);
        const steps = { kind: "step", steps: range(ahead).map((adapter) => ({ adapter, step: 0 })) } as const;
        const first = [...forwards, ...backwards, steps];
        const last = [...forwards.flatMap((forward, i) => [forward, backwards[i]!]), steps];
        const message = verify(inTurn([first, last]), { stages: 2, inFlight: [ahead, 1], sendBuffers: buffers });
        // The last stage has begun buffers + 1 forwards when it holds a gradient that it cannot send; as many again minus one
        // wait for it.
        if (ahead <= 2 * buffers + 1) expect(message).toBeNull();
        else expect(message).toMatch(/nothing can continue: stage 0 has no buffer.*stage 1 has no buffer/);
      }
  });
});

/** Whether a forward and a backward of different passes follow each other there. */
function turnsAt(list: readonly PipelineAction[], at: number): boolean {
  const [a, b] = [list[at]!, list[at + 1]!];
  return a.kind !== "step" && b.kind !== "step" && a.kind !== b.kind && a.pass !== b.pass;
}
const indexOf = (list: readonly PipelineAction[], wanted: PipelineAction): number =>
  list.findIndex(
    (action) => action.kind === wanted.kind && wanted.kind !== "step" && (action as typeof wanted).pass === wanted.pass,
  );

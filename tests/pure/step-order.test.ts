// When the stages of a pipeline step: not before all have what they need for it, and after some of the work of others.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { listsOf } from "../../src/schedule/lists.ts";
import { pipeline } from "../../src/schedule/pipeline.ts";
import { verify } from "../../src/schedule/verify.ts";
import { actionsOf, equalWork, joiningOf, limitsOf, randomCase } from "../helpers/works.ts";

test("there are no more adapters in a step on a stage than it has buffers for their gradients", () => {
  const rng = new Rng(16);
  let crowded = 0;
  for (let i = 0; i < 120; i++) {
    const buffers = 1 + rng.below(4);
    const of = randomCase(rng, { kind: "lorapp" });
    const { stages } = of.options;
    const gradients = {
      buffers: range(stages).map(() => Array<number>(buffers).fill(1)),
      needed: () => range(stages).map(() => 1),
    };
    const one = { ...of, options: { ...of.options, gradients } };
    const actions = actionsOf(one);
    expect(verify(actions, limitsOf(one))).toBeNull();
    for (const list of listsOf(actions, stages)) {
      const held = new Set<number>();
      for (const action of list) {
        if (action.kind === "step") for (const { adapter } of action.steps) held.delete(adapter);
        if (action.kind === "backward") for (const { adapter } of action.pass.segments) held.add(adapter);
        expect(held.size).toBeLessThanOrEqual(buffers);
        if (held.size === buffers) crowded++;
      }
    }
  }
  expect(crowded).toBeGreaterThan(100);
});

test("the first stage begins another's pass before a step, where adapters are enough", () => {
  for (const [stages, adapters] of [
    [2, 4],
    [2, 8],
    [3, 6],
    [4, 12],
  ] as const) {
    const works = range(adapters).map(() => equalWork(1, 8, 6));
    const inFlight = range(stages).map((stage) => 2 * stages - stage);
    const limits = { tokensPerMicrobatch: 8, passRows: 8, rowTile: 8 };
    const options = { kind: "lorapp", packing: "alone", stages, inFlight, sendBuffers: 2, ...limits } as const;
    const [first] = listsOf(pipeline(joiningOf(works), options), stages);
    const waits = first!.flatMap((action, i) => {
      if (action.kind !== "step") return [];
      const before = first!.slice(0, i).reverse();
      return action.steps.map(({ adapter }) =>
        before.findIndex((of) => of.kind === "backward" && of.pass.segments[0]!.adapter === adapter),
      );
    });
    const late = waits.filter((passes) => passes > 0).length;
    expect([stages, adapters, late / waits.length > 0.6]).toEqual([stages, adapters, true]);
  }
});

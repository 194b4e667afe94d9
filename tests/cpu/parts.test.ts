// Stages that begin and end within a layer: the same bytes as one stage, whatever the cut, and on another cut after a kill.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { signalled } from "../helpers/middle.ts";
import { areKept, leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(3);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const ADAPTERS = [0, 1, 3, 5];
/** One of them begins with parts of the weights. */
const recipe = (more = "") =>
  unlike(ADAPTERS, "cpu", more).replace('init = "orthogonal"', 'init = "olora"').replace("dropout = 0.3", "dropout = 0");

function expectSame(one: string, other: string): void {
  for (const i of ADAPTERS) expect(leftOf(outputOf(one), `a${i}`)).toEqual(leftOf(outputOf(other), `a${i}`));
}

test("an adapter learns the same, however the layers are divided, and continues on another cut", async () => {
  const text = longer(recipe("checkpoint = { steps = 2 }"), 2);
  const [one, ...others] = [["1"], ["1.5,1.5"], ["0.5,1,1.5"], ["2"]].map(([stages]) => ({
    stages: stages!,
    path: place.project(text, SUMS),
  }));
  for (const { stages, path } of [one!, ...others]) {
    const { code, err } = await place.mlora("run", path, "--stages", stages);
    expect(code, err).toBe(0);
    if (stages === "0.5,1,1.5")
      expect(err.match(/layers [^c]*on/g)).toEqual([
        "layers 0 (0 in part) on",
        "layers 0 to 1 (0 and 1 in part) on",
        "layers 1 to 2 (1 in part) on",
      ]);
  }
  for (const { path } of others) expectSame(path, one!.path);
  const killed = await signalled(
    "SIGKILL",
    (factor) => {
      const path = place.project(longer(text, factor), SUMS);
      return { factor, path, running: place.start(["run", path, "--stages", "1.5,1.5"]) };
    },
    ({ path }) =>
      areKept(
        outputOf(path),
        ADAPTERS.map((i) => `a${i}`),
      ),
  );
  expect(killed.ended.code).toBe(137);
  const { code, err } = await place.mlora("run", killed.path, "--stages", "2,1");
  expect([code, err]).toEqual([0, expect.not.stringContaining("at step 0 of")]);
  const undisturbed = place.project(longer(text, killed.factor), SUMS);
  expect((await place.mlora("run", undisturbed)).code).toBe(0);
  expectSame(killed.path, undisturbed);
}, 240_000);

test("cuts that no layer has are refused, with the way out", async () => {
  const path = place.project(recipe(), SUMS);
  const refused = async (stages: string) => {
    const { code, err } = await place.mlora("plan", path, "--stages", stages);
    expect(code).toBe(2);
    return err;
  };
  expect(await refused("1.25,1.75")).toContain(
    "--stages 1.25,1.75: expected auto, a number of stages up to 256, or the layers of each",
  );
  expect(await refused("1.5,1")).toContain("run.stages gives 1.5 + 1 = 2.5 layers to its stages; the base model has 3");
  const { code, out } = await place.mlora("plan", path, "--stages", "1.5,1.5", "--json");
  expect([code, JSON.parse(out).stages.map((stage: { layers: number[] }) => stage.layers)]).toEqual([
    0,
    [
      [0, 1.5],
      [1.5, 3],
    ],
  ]);
});

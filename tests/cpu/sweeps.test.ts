// Adapters that end early and sweeps that are halved: which adapters end when, and that the others are not changed by it.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { leftOf, metrics, SUMS, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const outputOf = (path: string) => join(path, "..", "out");
const HEAD = '[model]\npath = "../model"\n[run]\noutput = "out"\ndevice = "cpu"\n';
const DATA = 'data = { train = "rows.jsonl", split = 0.3 }\nbatch_size = 3\nrank = 4\n';
const evaluations = (path: string, name: string) =>
  metrics(outputOf(path), "evaluation").filter(({ adapter }) => adapter === name) as { step: number; loss: number }[];
const record = (path: string) => JSON.parse(readFileSync(join(outputOf(path), "run.json"), "utf8")).adapters;

test("an adapter ends when its held-out loss got no lower for as many evaluations as its patience, and its best is what is saved", async () => {
  const one = (name: string, patience: string) =>
    `[[adapter]]\nname = "${name}"\n${DATA}seed = 5\nlearning_rate = 0.05\nsteps = 60\neval_every = 2\n${patience}\n`;
  const path = place.project(
    HEAD + one("patient", "") + one("hasty", "patience = 2") + one("greedy", "patience = 1\nmin_delta = 0.5"),
    SUMS,
  );
  const { code, out } = await place.mlora("run", path);
  expect(code).toBe(0);
  const all = evaluations(path, "patient");
  const counted = all.filter(({ step }) => step > 0 && step < 60);
  for (const [name, patience, delta] of [
    ["hasty", 2, 0],
    ["greedy", 1, 0.5],
  ] as const) {
    let [best, mark, since, end] = [{ loss: Number.POSITIVE_INFINITY, step: 0 }, Number.POSITIVE_INFINITY, 0, 0];
    for (const { loss, step } of counted) {
      if (loss < best.loss) best = { loss, step };
      if (loss < mark - delta) [mark, since] = [loss, 0];
      else since++;
      if (since === patience) {
        end = step;
        break;
      }
    }
    expect(end, "the losses of this test rise some time").toBeGreaterThan(0);
    const { status, steps, after, message } = record(path)[name];
    expect([status, steps, after.loss]).toEqual(["early", end, best.loss]);
    expect(message).toContain(`step ${best.step}`);
    expect(out).toMatch(new RegExp(`^[* ]*${name} +early`, "m"));
    // Until then it trained as the one without patience.
    const steps1 = metrics(outputOf(path), "step").filter(({ adapter }) => adapter === name);
    const steps2 = metrics(outputOf(path), "step").filter(({ adapter, step }) => adapter === "patient" && Number(step) <= end);
    expect(steps1.map(({ loss }) => loss)).toEqual(steps2.map(({ loss }) => loss));
  }
  expect(existsSync(join(outputOf(path), "checkpoints", "hasty"))).toBe(false);
});

const sweep = (halving: string, run = "") =>
  `${HEAD}${run}[[adapter]]\nname = "s"\n${DATA}steps = 12\nscheduler = "constant"\n${halving}[adapter.sweep]\nlearning_rate = [1e-4, 3e-3, 1e-2, 3e-4, 1e-3]\n`;

test.each([
  ["all at once", "", 1],
  ["in two slots", "slots = 2\n", 1],
  ["over two stages", "", 2],
] as const)(
  "of a sweep the better half continues at every rung, %s; an adapter that continues trains as if alone",
  async (_, run, stages) => {
    const [full, halved] = [
      place.project(sweep(""), SUMS),
      place.project(sweep("halving = { rung = 4, keep = 0.5 }\n", run), SUMS),
    ];
    await place.mlora("run", full);
    const { code, out } = await place.mlora("run", halved, "--stages", `${stages}`);
    expect(code).toBe(0);
    const names = Object.keys(record(full));
    const lossAt = (name: string, step: number) => evaluations(halved, name).find((found) => found.step === step)!.loss;
    const first = names.toSorted((a, b) => lossAt(a, 4) - lossAt(b, 4)).slice(0, 3); // half of five, rounded up
    const second = first.toSorted((a, b) => lossAt(a, 8) - lossAt(b, 8)).slice(0, 2);
    for (const name of names) {
      const { status, steps } = record(halved)[name];
      const expected = second.includes(name) ? ["done", 12] : first.includes(name) ? ["dropped", 8] : ["dropped", 4];
      expect([name, status, steps]).toEqual([name, ...expected] as never);
      expect(existsSync(join(outputOf(halved), name))).toBe(second.includes(name));
    }
    for (const name of second) {
      expect(leftOf(outputOf(halved), name).weights).toBe(leftOf(outputOf(full), name).weights);
      expect(leftOf(outputOf(halved), name).steps).toEqual(leftOf(outputOf(full), name).steps);
    }
    // The table at the end is ranked, and its first is marked.
    const rows = out.split("\n").filter((line) => /^[* ]*s-lr/.test(line));
    const losses = rows.map((line) => Number(/-> ([\d.]+)/.exec(line)![1]));
    expect(rows[0]).toStartWith("*");
    expect(losses.slice(0, 2)).toEqual(losses.slice(0, 2).toSorted((a, b) => a - b));
  },
);

test("what has no held-out rows, no evaluations or no sweep to compare with is refused, with its place", async () => {
  const refused = async (text: string) => (await place.mlora("run", place.project(text, SUMS))).err;
  const bare = `${HEAD}[[adapter]]\nname = "a"\ndata = "rows.jsonl"\n`;
  expect(await refused(`${bare}patience = 2\neval_every = 2`)).toContain("adapter[0].patience needs held-out rows");
  expect(await refused(`${HEAD}[[adapter]]\nname = "a"\n${DATA}patience = 2`)).toContain(
    "adapter[0].patience counts evaluations",
  );
  expect(await refused(`${HEAD}[[adapter]]\nname = "a"\n${DATA}halving = { rung = 2, keep = 0.5 }`)).toContain(
    "adapter[0].halving compares the adapters of a sweep",
  );
  expect(
    await refused(`${HEAD}[[adapter]]\nname = "a"\n${DATA}halving = { rung = 2, keep = 1 }\n[adapter.sweep]\nrank = [1, 2]`),
  ).toContain("halving.keep is 1, expected a number from 0 to below 1");
});

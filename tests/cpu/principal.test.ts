// Adapters that begin as a part of the weight: what part that is, and that they add nothing at the beginning.

import { afterAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { largestEigen, type Matrix, matrix, multiply, orthonormal } from "../../src/device/algebra.ts";
import { svdFactors } from "../../src/engine/pool/svd-init.ts";
import { originalWeights } from "../../src/engine/weights/weight-source.ts";
import { linearShape } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const rng = new Rng(77);
const random = (rows: number, columns: number): Matrix =>
  matrix(
    rows,
    columns,
    Float64Array.from({ length: rows * columns }, () => rng.normal()),
  );
const off = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let [far, all] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    far += (a[i]! - b[i]!) ** 2;
    all += b[i]! ** 2;
  }
  return Math.sqrt(far / all);
};
const wide = (values: Float32Array, rows: number): Matrix => matrix(rows, values.length / rows, Float64Array.from(values));

describe.each([
  [40, 24],
  [24, 40],
  [33, 33],
])("of a weight [%i, %i]", (out, width) => {
  const n = Math.min(out, width);
  const [u, v] = [orthonormal(random(out, n)), orthonormal(random(width, n))];
  /** The singular values and how many of the largest count. */
  const weightOf = (values: readonly number[], count = n): Matrix => {
    const scaled = matrix(
      out,
      n,
      u.values.map((value, i) => value * (i % n < count ? values[i % n]! : 0)),
    );
    return multiply(scaled, v, { turnB: true });
  };

  test("PiSSA takes its largest singular values, and divides them between A and B", () => {
    const values = Array.from({ length: n }, (_, i) => 10 - i * 0.2);
    const { a, b } = svdFactors("pissa", weightOf(values), 5, 1.7, [1]);
    const part = multiply(wide(b, out), wide(a, 5));
    expect(
      off(
        part.values.map((value) => 1.7 * value),
        weightOf(values, 5).values,
      ),
    ).toBeLessThan(1e-6);
    const squares = multiply(wide(a, 5), wide(a, 5), { turnB: true });
    for (let i = 0; i < 5; i++)
      for (let j = 0; j < 5; j++) expect(squares.values[i * 5 + j]!).toBeCloseTo(i === j ? values[i]! / 1.7 : 0, 5);
  });

  test("in rounds it comes near that, the nearer the more there are", () => {
    const values = Array.from({ length: n }, (_, i) => 10 * 0.8 ** i);
    const errors = [0, 2, 16].map((rounds) => {
      const { a, b } = svdFactors(`pissa_niter_${rounds}`, weightOf(values), 5, 0.5, [3, 4]);
      return off(
        multiply(wide(b, out), wide(a, 5)).values.map((value) => 0.5 * value),
        weightOf(values, 5).values,
      );
    });
    expect(errors[2]!).toBeLessThan(1e-3);
    expect(errors[1]!).toBeLessThan(errors[0]!);
    expect(errors[2]!).toBeLessThan(errors[1]!);
    expect(svdFactors("pissa_niter_2", weightOf(values), 5, 1, [3])).toEqual(
      svdFactors("pissa_niter_2", weightOf(values), 5, 1, [3]),
    );
  });

  test("a weight of less rank than the adapter has it all", () => {
    const values = Array.from({ length: n }, (_, i) => (i < 3 ? 3 - i : 0));
    const { a, b } = svdFactors("pissa", weightOf(values), 6, 1, [1]);
    expect(off(multiply(wide(b, out), wide(a, 6)).values, weightOf(values).values)).toBeLessThan(1e-5);
  });

  test("OLoRA takes Q and R of its first columns", () => {
    const weight = random(out, width);
    const { a, b } = svdFactors("olora", weight, 4, 9, [1]);
    const unit = multiply(wide(b, out), wide(b, out), { turnA: true });
    for (let i = 0; i < 4; i++) for (let j = 0; j < 4; j++) expect(unit.values[i * 4 + j]!).toBeCloseTo(i === j ? 1 : 0, 5);
    const part = multiply(wide(b, out), wide(a, 4));
    for (let row = 0; row < out; row++)
      for (let r = 0; r < 4; r++) expect(part.values[row * width + r]!).toBeCloseTo(weight.values[row * width + r]!, 5);
    for (let r = 1; r < 4; r++) for (let c = 0; c < r; c++) expect(a[r * width + c]!).toBeCloseTo(0, 5);
  });
});

test("eigenvalues come the largest first, with their vectors", () => {
  const q = orthonormal(random(9, 9));
  const values = [7, 5, 5, 3, 2, 1, 0.5, 0, -4];
  const scaled = matrix(
    9,
    9,
    q.values.map((value, i) => value * values[i % 9]!),
  );
  const symmetric = multiply(scaled, q, { turnB: true });
  const copy = matrix(9, 9, symmetric.values.slice());
  const found = largestEigen(copy, 4);
  for (const [i, value] of found.values.entries()) expect(value).toBeCloseTo(values[i]!, 9);
  const moved = multiply(symmetric, found.vectors);
  for (let i = 0; i < 9; i++)
    for (let j = 0; j < 4; j++)
      expect(moved.values[i * 4 + j]!).toBeCloseTo(found.values[j]! * found.vectors.values[i * 4 + j]!, 9);
});

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const recipe = (init: string, more = "") => `[model]
path = "${place.model}"
[run]
output = "out"
device = "cpu"
[[adapter]]
name = "part"
init = "${init}"
rank = 3
alpha = 5
data = { train = "rows.jsonl", eval = "rows.jsonl" }
learning_rate = 1e-2
steps = 8
eval_every = 8
targets = ["q_proj", "v_proj", "gate_proj", "down_proj"]
${more}`;
const rows = { "rows.jsonl": sums(20) };

for (const init of ["pissa", "pissa_niter_4", "olora"] as const)
  test(`${init}: begins as the base, learns, and keeps what takes its beginning off`, async () => {
    const path = place.project(recipe(init), rows);
    const { code, err } = await place.mlora("run", path);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    const plain = place.project(recipe("default"), rows);
    expect((await place.mlora("run", plain)).code).toBe(0);
    const [losses, base] = [path, plain].map((of) =>
      metrics(join(of, "..", "out"), "evaluation").map((line) => line["loss"] as number),
    );
    expect(losses![0]!).toBeCloseTo(base![0]!, 5);
    expect(losses!.at(-1)!).toBeLessThan(losses![0]! - 0.1);
    const spec = readModelSpec(place.model);
    const saved = readPeftAdapter(join(path, "..", "out", "part"), spec);
    expect([saved.rank, saved.alpha / saved.rank]).toEqual([6, expect.closeTo(5 / 3)]);
    const original = originalWeights({ folder: place.model }, spec);
    for (const linear of ["q_proj", "down_proj"] as const) {
      const { in: width, out } = linearShape(spec, linear);
      const [a, b] = [saved.tensor(1, linear, "A"), saved.tensor(1, linear, "B")];
      const kept = (columns: readonly number[]) =>
        multiply(
          matrix(
            out,
            3,
            Float64Array.from({ length: out * 3 }, (_, i) => b[Math.floor(i / 3) * 6 + columns[i % 3]!]!),
          ),
          matrix(3, width, Float64Array.from(columns.flatMap((r) => [...a.subarray(r * width, (r + 1) * width)]))),
        ).values;
      const weight = matrix(out, width, Float64Array.from(original(1, linear)));
      if (init !== "pissa_niter_4") {
        const begun = svdFactors(init, weight, 3, 5 / 3, []);
        const part = multiply(wide(begun.b, out), wide(begun.a, 3)).values;
        expect(
          off(
            kept([3, 4, 5]),
            part.map((value) => -value),
          ),
        ).toBeLessThan(1e-6);
      }
      expect(
        off(
          kept([0, 1, 2]),
          kept([3, 4, 5]).map((value) => -value),
        ),
      ).toBeGreaterThan(1e-4); // the other half was trained
    }
  });

test("what would change the frozen half is refused with its place", async () => {
  const refused = async (init: string, more: string) => {
    const { code, err } = await place.mlora("plan", place.project(recipe(init, more), rows));
    expect(code).toBe(2);
    return err;
  };
  expect(await refused("pissa", "dropout = 0.1")).toContain(
    "adapter[0].dropout is 0.1: the weight's part would be dropped, too",
  );
  expect(await refused("olora", "weight_decay = 0.01")).toContain("adapter[0].weight_decay is 0.01");
  expect(await refused("pissa", 'method = "dora"')).toContain('adapter[0].method is "dora", and has to be "lora"');
  expect(await refused("pissa_niter_", "")).toContain('adapter[0].init is "pissa_niter_", expected "default"');
});

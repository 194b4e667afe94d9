// PiSSA and OLoRA on a GPU: frozen halves stay, and what is trained is what the cpu device trains. That other adapters change
// nothing, alone and next to the other kinds, in bf16 and fp32, is shown by tests/gpu/mixed.test.ts, whose list has them too.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { CudaDevice } from "../../src/device/cuda.ts";
import type { Tensor } from "../../src/device/device.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import { needs } from "../helpers/needs.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

/** Adapters of each init; those of a run may be some of them. */
const ADAPTERS: Readonly<Record<string, string>> = {
  pissa: 'init = "pissa"\nrank = 5\nalpha = 6',
  quick: 'init = "pissa_niter_2"\nrank = 16\nrslora = true',
  olora: 'init = "olora"\nrank = 3\nlora_plus_ratio = 4',
  plain: "rank = 7",
};

async function done(names: readonly string[], device: string, precision: string, steps: number, more = ""): Promise<string> {
  const text = `[model]\npath = "${place.model}"\nprecision = "${precision}"\n[run]\noutput = "out"\ndevice = "${device}"\n[defaults]
batch_size = 4\nsteps = ${steps}\nlearning_rate = 2e-3\ndata = { train = "rows.jsonl", eval = "rows.jsonl" }\n${more}
${names.map((name) => `[[adapter]]\nname = "${name}"\n${ADAPTERS[name]}\n`).join("")}`;
  const path = place.project(text, { "rows.jsonl": sums(12) });
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return join(path, "..", "out");
}
const NAMES = Object.keys(ADAPTERS);
const INITS = NAMES.filter((name) => name !== "plain");

needs("gpu")("an adapter that begins with the weight", () => {
  test("strided memory is zeroed between what stays", async () => {
    using device = new CudaDevice("bf16");
    for (const [rows, columns, stride] of [
      [3, 5, 16],
      [4097, 1, 7],
      [129, 64, 128],
      [1, 8, 8],
    ] as const) {
      const count = rows * stride + 3;
      const whole: Tensor = { ptr: device.allocate(4 * count, "a test"), dtype: "f32", shape: [count] };
      device.write(whole, new Float32Array(count).fill(7));
      device.zero({ ptr: whole.ptr + 8, dtype: "f32", shape: [rows, columns], stride });
      const got = new Float32Array((await device.read(whole)).buffer);
      const zeroed = (i: number) => i >= 2 && (i - 2) % stride < columns && i - 2 < rows * stride;
      expect([...got]).toEqual(range(count).map((i) => (zeroed(i) ? 0 : 7)));
      device.release(whole.ptr);
    }
  });

  for (const precision of ["bf16", "fp32", "nf4"])
    test(`its frozen half is the same after many steps, alone and with others, in ${precision}`, async () => {
      const spec = readModelSpec(place.model);
      const [once, long] = [await done(NAMES, "cuda", precision, 1), await done(NAMES, "cuda", precision, 20)];
      for (const name of INITS) {
        const alone = await done([name], "cuda", precision, 20);
        const [short, here, there] = [once, long, alone].map((of) => readPeftAdapter(join(of, name), spec));
        const half = here!.rank / 2;
        for (const layer of range(spec.layers))
          for (const linear of here!.targets)
            for (const factor of ["A", "B"] as const) {
              const [before, after] = [short!, here!].map((of) => of.tensor(layer, linear, factor));
              const isFrozen = (i: number) => (factor === "A" ? i >= after!.length / 2 : i % (2 * half) >= half);
              const differs = (frozen: boolean) => after!.some((value, i) => isFrozen(i) === frozen && value !== before![i]);
              expect([differs(true), differs(false)], `${name}: ${factor} of ${linear}`).toEqual([false, true]);
              expect(there!.tensor(layer, linear, factor)).toEqual(after!);
            }
      }
    }, 600_000);

  test("in fp32 its losses and gradient norms are the cpu device's, and it begins with the base's loss", async () => {
    const [cpu, gpu] = [await done(NAMES, "cpu", "fp32", 6), await done(NAMES, "cuda", "fp32", 6)];
    const first = (name: string) => Number(metrics(gpu, "evaluation").find(({ adapter }) => adapter === name)!["loss"]);
    for (const name of INITS) {
      expect(first(name) / first("plain")).toBeCloseTo(1, 5);
      const [want, got] = [cpu, gpu].map((of) => metrics(of, "step").filter(({ adapter }) => adapter === name));
      expect(got!.length).toBe(6);
      for (const [i, step] of got!.entries())
        for (const key of ["loss", "grad_norm"])
          expect(Math.abs(Number(step[key]) / Number(want![i]![key]) - 1), `${name}, ${key} of step ${i + 1}`).toBeLessThan(
            1e-3,
          );
    }
  }, 600_000);
});

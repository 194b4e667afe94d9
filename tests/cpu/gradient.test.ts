// The hand-written backward pass against finite differences of the forward pass: every family, every linear, with dropout and
// without. In f32 with a step that balances truncation and rounding, along random directions of each factor.

import { describe, expect, test } from "bun:test";
import type { BankAdapter } from "../../src/adapter/bank.ts";
import { Rng } from "../../src/base/rng.ts";
import { LINEARS } from "../../src/base/spec.ts";
import { CpuDevice } from "../../src/device/cpu.ts";
import { pack } from "../../src/schedule/pack.ts";
import { factorsOf, readAdapter, writeAdapter } from "../helpers/factors.ts";
import { randomFactors, randomTokens, tinyFamilies, tinyStage } from "../helpers/tiny.ts";

const adapters: readonly BankAdapter[] = [
  { rank: 3, scale: 1.7, targets: LINEARS },
  { rank: 5, scale: 0.4, targets: ["q_proj", "v_proj", "gate_proj", "down_proj"] },
];

for (const [name, spec] of Object.entries(tinyFamilies))
  for (const dropout of [0, 0.1])
    for (const recomputation of ["none", "selective", "full"] as const)
      describe(`${name}, dropout ${dropout}, recomputation ${recomputation}`, () => {
        test("gradients agree with finite differences", async () => {
          using stage = await tinyStage(new CpuDevice(2), spec, adapters, [5, 6], { recomputation });
          const rng = new Rng(9);
          const shares = adapters.map((_, adapter) => ({
            adapter,
            samples: [11, 3, 18 + adapter].map((length) => randomTokens(rng, spec.vocab, length)),
            seed: 40 + adapter,
            step: 3,
            dropout,
            firstRow: 7,
            weight: 0.05,
          }));
          const batch = pack(shares, adapters.length, stage.device.rowTile);
          const lossOf = async (): Promise<number> => {
            const losses = await stage.evaluate(batch); // the same masks: they are a function of seed, step, module and row
            return losses!.reduce((total, { loss }) => total + 0.05 * loss, 0);
          };
          await stage.forward(0, batch);
          await stage.backward(0);

          for (const adapter of adapters.keys()) {
            const gradients = factorsOf(stage, adapter, await stage.bank.read(adapter, "grads"));
            const start = await readAdapter(stage, adapter);
            const directions = await randomFactors(stage, adapter, 123);
            for (const [i, at] of start.entries()) {
              const direction = directions[i]!.values;
              const gradient = gradients[i]!.values;
              const along = gradient.reduce((total, g, j) => total + g * direction[j]!, 0);
              const step = 0.004;
              const lossAt = async (moved: number): Promise<number> => {
                const values = at.values.map((value, j) => value + moved * step * direction[j]!);
                await writeAdapter(stage, adapter, [{ ...at, values }]);
                return lossOf();
              };
              // Four points, so that the error of the difference is of fourth order.
              const [near, far] = [(await lossAt(1)) - (await lossAt(-1)), (await lossAt(2)) - (await lossAt(-2))];
              await writeAdapter(stage, adapter, [at]);
              const numeric = (8 * near - far) / (12 * step);
              const size = Math.hypot(...gradient) * Math.hypot(...direction);
              const where = `${at.layer}.${at.linear}.${at.factor} of adapter ${adapter}: ${along} against ${numeric}`;
              expect(size, where).toBeGreaterThan(0);
              expect(Math.abs(along - numeric) / size, where).toBeLessThan(1e-3); // a wrong mask or scale is off by 0.1 and more
            }
          }
        });
      });

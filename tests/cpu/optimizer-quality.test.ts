// What moments of 8 bits cost in quality: adapters of each method, large and of vectors alone, come to the loss of AdamW.

import { afterAll, expect, test } from "bun:test";
import { join } from "node:path";
import { stringify } from "smol-toml";
import { MIXED_FILES } from "../helpers/mixed.ts";
import { metrics, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const KINDS = {
  lora: { rank: 16, learning_rate: 4e-3 },
  plus: { rank: 8, learning_rate: 1e-3, lora_plus_ratio: 8, weight_decay: 0.05 },
  dora: { rank: 8, method: "dora", learning_rate: 4e-3 },
  vera: { rank: 40, method: "vera", learning_rate: 2e-2 },
};

test("each method comes within 2 % of the loss of AdamW", async () => {
  const adapters = Object.entries(KINDS).flatMap(([name, keys]) =>
    (["adamw", "adamw-8bit"] as const).map((optimizer) => ({
      name: `${name}-${optimizer}`,
      ...{ ...keys, optimizer, seed: 5, steps: 100, batch_size: 4, eval_every: 100 },
      data: { train: "rows.jsonl", split: 0.25 },
    })),
  );
  const run = { output: "out", device: "cpu" };
  const path = place.project(stringify({ model: { path: "../model" }, run, adapter: adapters }), MIXED_FILES);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const evaluations = metrics(join(path, "..", "out"), "evaluation");
  for (const name of Object.keys(KINDS)) {
    const lossesOf = (optimizer: string) =>
      evaluations.filter(({ adapter }) => adapter === `${name}-${optimizer}`).map(({ loss }) => Number(loss));
    const [exact, eight] = [lossesOf("adamw"), lossesOf("adamw-8bit")];
    expect(eight[0], name).toBe(exact[0]!);
    expect(exact.at(-1)!, name).toBeLessThan(0.9 * exact[0]!);
    expect(Math.abs(eight.at(-1)! / exact.at(-1)! - 1), `${name}: ${eight.at(-1)} and ${exact.at(-1)}`).toBeLessThan(0.02);
  }
});

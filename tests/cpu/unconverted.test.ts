// Adapters that PEFT takes off the base model where it loads them, PiSSA's and OLoRA's as they are saved without conversion:
// before its first step such an adapter adds nothing to the base, whatever is done with it.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { partOfWeights } from "../../src/engine/pool/initialise.ts";
import { originalWeights } from "../../src/engine/weights/weight-source.ts";
import { type Linear, linearShape } from "../../src/families/linears.ts";
import { openBaseModel } from "../../src/files/basemodel.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { writePeftAdapter } from "../../src/files/peft.ts";
import type { LinearFactor } from "../../src/methods/layout.ts";
import { FILES } from "../helpers/preferences.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(3);
afterAll(() => place[Symbol.dispose]());
const spec = readModelSpec(place.model);

type Init = "pissa" | "olora";
const TARGETS: readonly Linear[] = ["q_proj", "up_proj", "down_proj"];
const RANK = 3;

/**
 * What PEFT saves before the first step; with `bent`, one value of B is another. Ranks are twice as large in layer 1 where
 * `uneven`.
 */
function unconverted(init: Init, { dora = false, uneven = false, bent = false } = {}): string {
  const folder = join(place.root, `${init}-${dora}-${uneven}-${bent}`);
  mkdirSync(folder, { recursive: true });
  const part = partOfWeights(place.model, spec);
  const original = originalWeights({ folder: place.model }, spec);
  const scale = 5 / RANK;
  const factors = range(spec.layers).flatMap((layer) =>
    TARGETS.flatMap((linear): LinearFactor[] => {
      const rank = uneven && layer === 1 ? 2 * RANK : RANK;
      const { a, b } = part({ layer, linear, init, rank, scale });
      if (bent) b[0]! += 1;
      const { in: width } = linearShape(spec, linear);
      const weight = original(layer, linear);
      const lengths = Float32Array.from({ length: weight.length / width }, (_, row) =>
        Math.hypot(...weight.subarray(row * width, (row + 1) * width)),
      );
      const own: LinearFactor[] = [
        { layer, linear, factor: "A", values: a },
        { layer, linear, factor: "B", values: b },
      ];
      return dora ? [...own, { layer, linear, factor: "M", values: lengths }] : own;
    }),
  );
  const ranks = range(spec.layers).map((layer) => (uneven && layer === 1 ? 2 * RANK : RANK));
  const LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
  const table = (of: (rank: number) => number) =>
    ranks.map((rank) => LINEARS.map((linear) => (TARGETS.includes(linear as Linear) ? of(rank) : 0)));
  const places = { ranks: table((rank) => rank), scales: table(() => scale) };
  const base = { dropout: 0, rslora: false, targets: TARGETS, baseModel: place.model, method: dora ? "dora" : "lora" } as const;
  const size = uneven ? { rank: 2 * RANK, alpha: 10, places } : { rank: RANK, alpha: 5 };
  writePeftAdapter(folder, spec, { ...base, ...size }, factors);
  const path = join(folder, "adapter_config.json");
  writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), init_lora_weights: init }));
  return folder;
}

/** The farthest value of a merged model from the base's. */
function farthest(merged: string): number {
  using theirs = openBaseModel(merged, spec);
  const original = originalWeights({ folder: place.model }, spec);
  let most = 0;
  for (const layer of range(spec.layers))
    for (const [linear, name] of [
      ["q_proj", "self_attn.q_proj"],
      ["v_proj", "self_attn.v_proj"],
      ["down_proj", "mlp.down_proj"],
    ] as const) {
      const want = original(layer, linear);
      const got = new Float32Array(want.length);
      theirs.read(`model.layers.${layer}.${name}.weight`, new Uint8Array(got.buffer));
      for (const [i, value] of got.entries()) most = Math.max(most, Math.abs(value - want[i]!));
    }
  return most;
}

const merge = async (adapter: string) => {
  const output = `${adapter}-merged`;
  const { code, err } = await place.mlora("export", adapter, "--output", output, "--dtype", "fp32");
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  return farthest(output);
};

test.each(["pissa", "olora"] as const)(
  "%s merged before its first step is the base",
  async (init) => {
    for (const kind of [{}, { dora: true }, { uneven: true }]) expect(await merge(unconverted(init, kind))).toBeLessThan(2e-6);
    expect(await merge(unconverted(init, { bent: true }))).toBeGreaterThan(1e-3);
  },
  120_000,
);

test("it generates as the base does", async () => {
  const say = async (...of: string[]) => {
    const words = ["--prompt", "What is 2 + 3?", "--device", "cpu", "--max-new-tokens", "12", "--precision", "fp32"];
    const { code, out, err } = await place.mlora("generate", ...of, ...words);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    return out;
  };
  expect(await say("--adapter", unconverted("pissa"))).toBe(await say(place.model));
});

const DATA = 'data = { train = "rows.jsonl", eval = "rows.jsonl" }';
const HEAD = `[model]\npath = "${place.model}"\nprecision = "fp32"\n[run]\noutput = "out"\ndevice = "cpu"\n`;
const project = (body: string) => place.project(`${HEAD}${body}`, { ...FILES, "rows.jsonl": sums(8) });
const firstLoss = (path: string, name: string) =>
  Number(metrics(join(path, "..", "out"), "evaluation").find(({ adapter }) => adapter === name)!["loss"]);

test("a run continues with its half frozen, or with all of it, and measures preferences against it", async () => {
  const from = unconverted("olora");
  const targets = `targets = ${JSON.stringify(TARGETS)}\nsteps = 2\nlearning_rate = 1e-3`;
  const path = project(`[[adapter]]\nname = "half"\nfrom = "${from}"\ninit = "olora"\nrank = 3\nalpha = 5\n${targets}\n${DATA}
[[adapter]]\nname = "all"\nfrom = "${from}"\nrank = 6\nalpha = 10\n${targets}\n${DATA}
[[adapter]]\nname = "plain"\nrank = 4\nsteps = 2\n${DATA}
[[adapter]]\nname = "own"\nrank = 4\nsteps = 1\ndata = { train = "pairs.jsonl", eval = "pairs.jsonl" }
objective = { name = "dpo", reference = "base" }
[[adapter]]\nname = "other"\nrank = 4\nsteps = 1\ndata = { train = "pairs.jsonl", eval = "pairs.jsonl" }
objective = { name = "dpo", reference = "${from}" }\n`);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  for (const name of ["half", "all"]) expect(firstLoss(path, name) / firstLoss(path, "plain")).toBeCloseTo(1, 5);
  expect(firstLoss(path, "other") / firstLoss(path, "own")).toBeCloseTo(1, 4);
  const config = JSON.parse(readFileSync(join(path, "..", "out", "half", "adapter_config.json"), "utf8"));
  expect([config.r, config.init_lora_weights]).toEqual([6, true]);
  // What was converted continues in the same way.
  const more = project(`[[adapter]]\nname = "more"\nfrom = "${join(path, "..", "out", "half")}"\ninit = "olora"
rank = 3\nalpha = 5\n${targets}\n${DATA}`);
  const result = await place.mlora("run", more);
  expect([result.code, result.code === 0 ? "" : result.err]).toEqual([0, ""]);
  const ended = metrics(join(path, "..", "out"), "evaluation").filter(({ adapter }) => adapter === "half");
  expect(firstLoss(more, "more") / Number(ended.at(-1)!["loss"])).toBeCloseTo(1, 5);
});

test("a recipe that takes it for another is refused with what it is", async () => {
  const refused = async (keys: string) => {
    const { code, err } = await place.mlora("plan", project(`[[adapter]]\nname = "on"\n${keys}\n${DATA}\n`));
    expect(code).toBe(2);
    return err;
  };
  const from = `from = "${unconverted("pissa")}"\ntargets = ${JSON.stringify(TARGETS)}`;
  const way = 'init = "pissa", rank = 3 and alpha = 5';
  for (const keys of ["rank = 3\nalpha = 5", 'init = "olora"\nrank = 3\nalpha = 5', 'init = "pissa"\nrank = 4\nalpha = 5'])
    expect(await refused(`${from}\n${keys}`)).toContain(way);
  expect(await refused(`${from}\ninit = "pissa"\nrank = 3\nalpha = 5\ndropout = 0.1`)).toContain("dropout is 0.1");
  const plain = project(`[[adapter]]\nname = "plain"\nrank = 5\nsteps = 1\n${DATA}\n`);
  expect((await place.mlora("run", plain)).code).toBe(0);
  const odd = await refused(`from = "${join(plain, "..", "out", "plain")}"\ninit = "pissa"\nrank = 4\nalpha = 5`);
  expect(odd).toContain("it has rank 5, and pissa needs one of twice the recipe's rank 4");
});

test("one of several ranks is reported as a recipe has it, with its half frozen; with DoRA, all of it", async () => {
  for (const dora of [false, true]) {
    const from = `from = "${unconverted("pissa", { uneven: true, dora })}"\n${dora ? 'method = "dora"\n' : ""}`;
    const plan = (keys: string) => place.mlora("plan", project(`[[adapter]]\nname = "on"\n${from}${keys}\n${DATA}\n`));
    const { code, err } = await plan("rank = 3\nalpha = 5");
    const [told, hint] = err.split("hint: give the adapter what it has there, and no exclude:\n");
    expect([code, told]).toEqual([
      2,
      expect.stringContaining("it began with pissa, and its ranks or scales differ from the recipe's in some layer"),
    ]);
    expect(hint!.startsWith('init = "pissa"')).toBe(!dora);
    const planned = await plan(hint!);
    expect([planned.code, planned.err]).toEqual([0, ""]);
  }
});

// Adapters whose ranks and scales differ by layer and linear, from the command line: planned, trained, exported, generated
// with, continued.

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "smol-toml";
import { range } from "../../src/base/shape.ts";
import { type Linear, pathOf } from "../../src/families/linears.ts";
import { readModelSpec } from "../../src/files/config.ts";
import { readPeftAdapter } from "../../src/files/peft.ts";
import type { Placed } from "../../src/methods/adapter.ts";
import { countParameters } from "../../src/methods/layout.ts";
import { rankAt, scaleAt } from "../../src/methods/placement.ts";
import { mergedBy, tensorsOf } from "../helpers/merged.ts";
import { signalled } from "../helpers/middle.ts";
import { FILES } from "../helpers/preferences.ts";
import { leftOf, metrics, sums, Workplace } from "../helpers/program.ts";
import { LINEARS } from "../helpers/tiny.ts";

const place = new Workplace(3);
afterAll(() => place[Symbol.dispose]());
const spec = readModelSpec(place.model);

/** By name: its keys, and its rank and scale in a linear of a layer, written down once more; null where it has none. */
type Case = {
  readonly keys: Readonly<Record<string, unknown>>;
  readonly at: (layer: number, linear: Linear) => readonly [rank: number, scale: number] | null;
};
const CASES: Readonly<Record<string, Case>> = {
  lora: {
    keys: {
      rank: 4,
      alpha: 6,
      exclude: ["k_proj"],
      rank_pattern: { "1\\..*": 7, down_proj: 2 },
      alpha_pattern: { o_proj: 14 },
    },
    at: (layer, linear) => {
      if (linear === "k_proj") return null;
      const rank = layer === 1 ? 7 : linear === "down_proj" ? 2 : 4;
      return [rank, (linear === "o_proj" ? 14 : 6) / rank];
    },
  },
  dora: {
    keys: {
      method: "dora",
      rank: 3,
      alpha: 6,
      rslora: true,
      targets: ".*(0.*q_proj|2.*down_proj)",
      rank_pattern: { q_proj: 9 },
    },
    at: (layer, linear) =>
      layer === 0 && linear === "q_proj" ? [9, 2] : layer === 2 && linear === "down_proj" ? [3, 6 / Math.sqrt(3)] : null,
  },
  vera: {
    keys: { method: "vera", rank: 12, layers: "1-2", targets: ["v_proj", "up_proj"], learning_rate: 5e-2 },
    at: (layer, linear) => (layer > 0 && (linear === "v_proj" || linear === "up_proj") ? [12, 1] : null),
  },
  pissa: {
    keys: { init: "pissa", rank: 3, alpha: 6, targets: ["q_proj", "v_proj"], layers: [0, 2], rank_pattern: { v_proj: 5 } },
    // written with twice the ranks
    at: (layer, linear) => (layer === 1 ? null : linear === "q_proj" ? [6, 2] : linear === "v_proj" ? [10, 6 / 5] : null),
  },
};
const NAMES = Object.keys(CASES);
/** What an export says of the ranks and scales, to the digits that are reported here. */
const SPANS: Readonly<Record<string, string>> = {
  lora: "rank 2 to 7, scale 0.857142857142857",
  dora: "rank 3 to 9, scale 2 to 3.46410",
  vera: "rank 12, scale 1)",
  pissa: "rank 6 to 10, scale 1.2 to 2)",
};

const recipeOf = (adapters: readonly object[], model = place.model) =>
  place.project(
    stringify({
      model: { path: model, precision: "fp32" },
      run: { output: "out", device: "cpu" },
      defaults: {
        data: { train: "rows.jsonl", eval: "rows.jsonl" },
        learning_rate: 1e-2,
        steps: 8,
        batch_size: 4,
        eval_every: 8,
      },
      adapter: adapters,
    }),
    { ...FILES, "rows.jsonl": sums(12) },
  );
const recipe = recipeOf(NAMES.map((name) => ({ name, ...CASES[name]!.keys })));
const outputOf = (path: string) => join(path, "..", "out");
const folderOf = (name: string) => join(outputOf(recipe), name);
const lossesOf = (path: string, name: string) =>
  metrics(outputOf(path), "evaluation").flatMap(({ adapter, loss }) => (adapter === name ? [loss as number] : []));
const jsonIn = (path: string) => JSON.parse(readFileSync(path, "utf8"));
const countOf = ({ at }: Case) => range(spec.layers).flatMap((layer) => LINEARS.filter((linear) => at(layer, linear))).length;

/** Whether an adapter is where a case has it. */
function expectPlaces(of: Placed & { readonly scale: number }, { at }: Case): void {
  for (const layer of range(spec.layers))
    for (const linear of LINEARS) {
      const [rank, scale] = at(layer, linear) ?? [0, 0];
      expect(rankAt(of, layer, linear), pathOf(spec.tower, layer, linear)).toBe(rank);
      expect(scaleAt(of, layer, linear), pathOf(spec.tower, layer, linear)).toBeCloseTo(scale, 9);
    }
}

test("the plan tells the largest rank as such, the modules, and what is trained", async () => {
  const { code, out, err } = await place.mlora("plan", recipe);
  expect([code, err]).toEqual([0, ""]);
  for (const [name, rank] of Object.entries({
    lora: "7 at most",
    dora: "9 at most",
    vera: "12",
    pissa: "5 + 5 frozen at most",
  })) {
    const modules = `${countOf(CASES[name]!)} of 21 modules`;
    expect(out).toMatch(new RegExp(`^ *${name} +${rank.replaceAll("+", "\\+")} +${modules} `, "m"));
  }
  const { adapters } = JSON.parse((await place.mlora("plan", recipe, "--json")).out);
  for (const [i, name] of NAMES.entries()) {
    const { at, keys } = CASES[name]!;
    const told = adapters[i];
    const frozen = name === "pissa" ? 2 : 1;
    expect(told.modules).toBe(countOf(CASES[name]!));
    const placed: Placed = {
      ...{ rank: told.rank, targets: told.targets },
      places: {
        ranks: range(spec.layers).map((layer) => LINEARS.map((linear) => (at(layer, linear)?.[0] ?? 0) / frozen)),
        scales: [],
      },
    };
    expect(told.places.ranks).toEqual(placed.places!.ranks);
    expect(told.rank).toBe(Math.max(...placed.places!.ranks.flat()));
    expect(told.frozen_rank).toBe((frozen - 1) * told.rank);
    const { method = "lora" } = keys as { method?: "lora" | "dora" | "vera" };
    expect(told.parameters).toBe(countParameters(spec, spec.layers, placed, method));
  }
}, 120_000);

describe("trained", () => {
  const run = place.mlora("run", recipe);

  test("they learn, and are written as PEFT reads them", async () => {
    const { code, err } = await run;
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    for (const name of NAMES) {
      const losses = lossesOf(recipe, name);
      expect(losses.at(-1)!).toBeLessThan(losses[0]! - 0.02);
      expectPlaces(readPeftAdapter(folderOf(name), spec), CASES[name]!);
    }
    const { r, lora_alpha, rank_pattern, alpha_pattern, target_modules, layers_to_transform } = jsonIn(
      join(folderOf("pissa"), "adapter_config.json"),
    );
    expect({ r, lora_alpha, rank_pattern, alpha_pattern, target_modules, layers_to_transform }).toEqual({
      ...{ r: 6, lora_alpha: 12, rank_pattern: { v_proj: 10 }, alpha_pattern: {} },
      ...{ target_modules: ["q_proj", "v_proj"], layers_to_transform: [0, 2] },
    });
  }, 60_000);

  test("the card of one that is written with twice the ranks names those that were trained, and their scales", async () => {
    await run;
    const card = readFileSync(join(folderOf("pissa"), "README.md"), "utf8");
    expect(card).toStartWith(
      "A LoRA of the ranks and scales below that began with pissa, written as a plain LoRA of twice the ranks:",
    );
    expect(card).toEndWith(
      "\n\n| rank | scale | modules |\n| ---: | ---: | --- |\n| 3 | 2 | q_proj of layers 0, 2 |\n| 5 | 1.2 | v_proj of layers 0, 2 |\n",
    );
  });

  for (const name of NAMES)
    test(`${name}: merged, it is W + scale B A, has the loss that it had, and says the same`, async () => {
      await run;
      const merged = join(place.root, `merged-${name}`);
      const flags = ["--output", merged, "--dtype", "fp32"];
      const { code, err, out } = await place.mlora("export", folderOf(name), ...flags);
      expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
      expect(out).toStartWith(`merged ${countOf(CASES[name]!)} of 29 tensors (${SPANS[name]}`);
      const want = mergedBy(tensorsOf(place.model, spec), folderOf(name), spec, (...at) => CASES[name]!.at(...at)![1]);
      for (const [tensor, values] of tensorsOf(merged, spec)) {
        const worst = values.reduce((most, value, i) => Math.max(most, Math.abs(value - want.get(tensor)![i]!)), 0);
        expect(worst, tensor).toBeLessThan(1e-6);
      }
      const again = recipeOf([{ name: "fresh", rank: 1, steps: 1 }], merged);
      expect((await place.mlora("run", again)).code).toBe(0);
      expect(lossesOf(again, "fresh")[0]! / lossesOf(recipe, name).at(-1)!).toBeCloseTo(1, 4);
      const say = async (...of: string[]) => {
        const asked = ["--prompt", "What is 2 + 3?", "--max-new-tokens", "12", "--precision", "fp32", "--device", "cpu"];
        const said = await place.mlora("generate", ...of, ...asked);
        expect([said.code, said.code === 0 ? "" : said.err]).toEqual([0, ""]);
        return said.out;
      };
      const answer = await say("--adapter", folderOf(name));
      expect(await say(merged)).toBe(answer);
    }, 60_000);

  for (const name of NAMES)
    test(`${name}: resumes with the same places, and with others is refused with what it has`, async () => {
      await run;
      const { method, rslora, ...others } = CASES[name]!.keys;
      const kind = { ...(method ? { method } : {}), ...(rslora ? { rslora } : {}) };
      const other = recipeOf([{ name: "on", ...kind, rank: others["rank"], layers: [0], from: folderOf(name) }]);
      const refused = await place.mlora("plan", other);
      expect([refused.code, refused.out]).toEqual([2, ""]);
      const [told, keys] = refused.err.split("hint: give the adapter what it has there, and no exclude:\n");
      expect(told).toBe(
        `error[plan.from]: adapter 'on' cannot continue ${folderOf(name)}: its ranks or scales differ from the recipe's in some layer\n`,
      );
      const path = recipeOf([{ name: "on", ...kind, from: folderOf(name), steps: 1 }]);
      const text = readFileSync(path, "utf8").replace('name = "on"\n', `name = "on"\n${keys}\n`);
      const on = place.project(text, { "rows.jsonl": sums(12) });
      const { code, err } = await place.mlora("run", on);
      expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
      expect(lossesOf(on, "on")[0]! / lossesOf(recipe, name).at(-1)!).toBeCloseTo(1, 6);
    }, 60_000);

  test("preferences are measured against an adapter of other places: one of several ranks, and one of a single rank", async () => {
    await run;
    const plain = recipeOf([{ name: "plain", rank: 4 }]);
    expect((await place.mlora("run", plain)).code).toBe(0);
    const { keys } = CASES["lora"]!;
    for (const folder of [folderOf("lora"), folderOf("dora"), join(outputOf(plain), "plain")]) {
      const preferring = {
        data: { train: "pairs.jsonl", eval: "pairs.jsonl" },
        steps: 1,
        objective: { name: "dpo", reference: folder },
      };
      const path = recipeOf([
        { name: "uneven", ...keys, ...preferring },
        { name: "even", rank: 3, ...preferring },
      ]);
      const { code, err } = await place.mlora("run", path);
      expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
      // Before their first step both are the base.
      expect(lossesOf(path, "uneven")[0]!).toBe(lossesOf(path, "even")[0]!);
    }
  }, 60_000);
});

test("interrupted on two stages they continue on one, to the same numbers; another pattern is reported as what has changed", async () => {
  const project = (factor: number) =>
    recipeOf(NAMES.map((name) => ({ name, ...CASES[name]!.keys, steps: 40 * factor, eval_every: 40 })));
  const { path: disturbed, ...interrupted } = await signalled(
    "SIGINT",
    (factor) => {
      const path = project(factor);
      return { factor, path, running: place.start(["run", path, "--stages", "2"]) };
    },
    ({ path }) => existsSync(join(outputOf(path), "metrics.jsonl")) && metrics(outputOf(path), "step").length >= 20,
  );
  expect(interrupted.ended.code).toBe(1);

  const text = readFileSync(disturbed, "utf8");
  writeFileSync(disturbed, text.replace("down_proj = 2", "down_proj = 3"));
  const changed = await place.mlora("run", disturbed, "--resume");
  expect([changed.code, changed.err]).toEqual([2, expect.stringContaining('"down_proj":2}, is {')]);
  writeFileSync(disturbed, text);
  const again = await place.mlora("run", disturbed, "--resume");
  expect([again.code, again.err]).toEqual([0, expect.stringMatching(/^going on with the run in .*: lora at step [1-9]/m)]);
  const undisturbed = project(interrupted.factor);
  expect((await place.mlora("run", undisturbed)).code).toBe(0);
  for (const name of NAMES) expect(leftOf(outputOf(disturbed), name)).toEqual(leftOf(outputOf(undisturbed), name));
}, 120_000);

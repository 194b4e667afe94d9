// An adapter that began with PiSSA from the command line: planned, trained, merged and generated with, and continued.

import { afterAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FILES } from "../helpers/preferences.ts";
import { metrics, sums, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());

const recipe = place.project(
  `[model]\npath = "${place.model}"\nprecision = "fp32"\n[run]\noutput = "out"\ndevice = "cpu"\n[defaults]\nbatch_size = 4
steps = 8\nlearning_rate = 3e-3\ndata = { train = "rows.jsonl", eval = "rows.jsonl" }
[[adapter]]\nname = "pissa"\ninit = "pissa"\nrank = 4\nalpha = 6
[[adapter]]\nname = "quick"\ninit = "pissa_niter_4"\nrank = 3\nrslora = true
[[adapter]]\nname = "olora"\ninit = "olora"\nrank = 5
[[adapter]]\nname = "plain"\nrank = 4\n`,
  { "rows.jsonl": sums(8) },
);
const output = join(recipe, "..", "out");
const at = (name: string) => join(output, name);
const SCALES: Readonly<Record<string, number>> = { pissa: 1.5, quick: 18.4752, olora: 6.4 };

test("the plan shows the recipe's rank, what is frozen with it, and what is trained", async () => {
  const { code, out } = await place.mlora("plan", recipe, "--json");
  expect(code).toBe(0);
  const { adapters } = JSON.parse(out);
  const told = adapters.map((of: Record<string, number>) => [of["rank"], of["frozen_rank"], of["parameters"]]);
  expect(told[0]).toEqual([4, 4, told[3][2]]);
  expect(told[1].slice(0, 2)).toEqual([3, 3]);
  expect((await place.mlora("plan", recipe)).out).toContain("4 + 4 frozen");
});

test("each begins with the base's loss, learns, and is merged as generation has it with the base", async () => {
  const { code, err } = await place.mlora("run", recipe);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const evaluations = metrics(output, "evaluation");
  const losses = (name: string) => evaluations.filter(({ adapter }) => adapter === name).map(({ loss }) => Number(loss));
  for (const name of ["pissa", "quick", "olora"]) {
    expect(losses(name)[0]! / losses("plain")[0]!).toBeCloseTo(1, 6); // a plain one begins with exact zeros
    expect(losses(name).at(-1)!).toBeLessThan(losses(name)[0]!);
    const config = JSON.parse(readFileSync(join(at(name), "adapter_config.json"), "utf8"));
    expect([config.r, config.init_lora_weights]).toEqual([{ pissa: 8, quick: 6, olora: 10 }[name], true]);
    expect(readFileSync(join(at(name), "README.md"), "utf8")).toContain(
      `A LoRA of rank ${config.r / 2} and scale ${SCALES[name]} that began with`,
    );
    const merged = join(place.root, `merged-${name}`);
    expect((await place.mlora("export", at(name), "--output", merged, "--dtype", "fp32")).code).toBe(0);
    const say = async (...of: string[]) => {
      const said = await place.mlora("generate", "--device", "cpu", "--max-new-tokens", "12", "--precision", "fp32", ...of);
      expect(said.code, said.err).toBe(0);
      return said.out;
    };
    const words = ["--prompt", "What is 2 + 3?"];
    expect(await say(merged, ...words)).toBe(await say("--adapter", at(name), ...words));
  }
  expect((await place.mlora("generate", recipe, "--device", "cpu")).code).toBe(0);
});

test("what was written is continued as a plain LoRA of twice the rank", async () => {
  const text = (rank: number) => `[model]\npath = "${place.model}"\nprecision = "fp32"\n[run]\noutput = "more"\ndevice = "cpu"
[[adapter]]\nname = "more"\nfrom = "${at("pissa")}"\nrank = ${rank}\nalpha = ${(rank * 3) / 2}\nsteps = 1
data = { train = "rows.jsonl", eval = "rows.jsonl" }\n`;
  const files = { "rows.jsonl": sums(8) };
  const refused = await place.mlora("run", place.project(text(4), files));
  expect([refused.code, refused.err]).toEqual([2, expect.stringContaining("rank 8 there, 4 in the recipe")]);
  const path = place.project(text(8), files);
  expect((await place.mlora("run", path)).code).toBe(0);
  const loss = (folder: string, name: string, which: number) =>
    Number(
      metrics(folder, "evaluation")
        .filter(({ adapter }) => adapter === name)
        .at(which)!["loss"],
    );
  expect(loss(join(path, "..", "more"), "more", 0) / loss(output, "pissa", -1)).toBeCloseTo(1, 6);
});

const one = (body: string) => {
  const text = `[model]\npath = "${place.model}"\nprecision = "fp32"\n[run]\noutput = "out"\ndevice = "cpu"\n`;
  return place.project(`${text}${body}`, { ...FILES, "rows.jsonl": sums(8) });
};
const lossesOf = (path: string) => metrics(join(path, "..", "out"), "evaluation").map(({ loss }) => Number(loss));
const DATA = 'data = { train = "rows.jsonl", eval = "rows.jsonl" }';

test("an init in [defaults] is for those that begin by it: not for one that continues, nor for a VeRA", async () => {
  const defaults = '[defaults]\ninit = "pissa"\nsteps = 1';
  const path = one(`${defaults}\n[[adapter]]\nname = "on"\nfrom = "${at("plain")}"\nrank = 4\ndropout = 0.1\n${DATA}\n`);
  const { code, err } = await place.mlora("run", path);
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  const ended = metrics(output, "evaluation").filter(({ adapter }) => adapter === "plain");
  expect(lossesOf(path)[0]! / Number(ended.at(-1)!["loss"])).toBeCloseTo(1, 6);
  const vera = one(`${defaults}\n[[adapter]]\nname = "vera"\nmethod = "vera"\nrank = 5\n${DATA}\n`);
  expect((await place.mlora("run", vera)).code).toBe(0);
});

test("its reference may be an adapter of any rank", async () => {
  const preferring = (init: string, rank: number) =>
    one(`[[adapter]]\nname = "p"\ninit = "${init}"\nrank = ${rank}\nsteps = 1\ndata = { train = "pairs.jsonl", eval = "pairs.jsonl" }
objective = { name = "dpo", reference = "${at("plain")}" }\n`);
  const first = async (path: string) => {
    const { code, err } = await place.mlora("run", path);
    expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
    return lossesOf(path)[0]!;
  };
  const want = await first(preferring("default", 4));
  for (const rank of [1, 4, 9]) expect((await first(preferring("pissa", rank))) / want).toBeCloseTo(1, 5);
});

test("more of a weight than there is is refused by the plan", async () => {
  const { code, err } = await place.mlora("plan", one(`[[adapter]]\nname = "wide"\ninit = "olora"\nrank = 60\n${DATA}\n`));
  expect([code, err]).toEqual([2, expect.stringContaining('has no 60 directions for "olora" to begin with')]);
});

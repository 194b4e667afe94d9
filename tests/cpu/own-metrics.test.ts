// Metrics of a recipe's own program: what it is given, what becomes of what it prints, and which state of an adapter is saved.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { metrics, sums, Workplace } from "../helpers/program.ts";

let place: Workplace;
beforeAll(() => {
  place = new Workplace();
  writeFileSync(join(place.root, "rows.jsonl"), sums(16));
  // Keeps what it was given, and prints a number that is best after step 4.
  writeFileSync(
    join(place.root, "score.mjs"),
    `import { copyFileSync, mkdirSync } from "node:fs";
const [keep, folder] = process.argv.slice(2);
const { adapter, step } = JSON.parse(await Bun.stdin.text());
mkdirSync(keep, { recursive: true });
copyFileSync(folder + "/adapter_model.safetensors", keep + "/" + adapter + "-" + step);
console.log(JSON.stringify({ f1: 10 - (step - 4) ** 2, step }));`,
  );
});
afterAll(() => place[Symbol.dispose]());

let made = 0;
const adapter = (name: string, more: string) =>
  `[[adapter]]\nname = "${name}"\ndata = { train = "rows.jsonl", split = 0.25 }\nsteps = 8\nbatch_size = 2\neval_every = 2\nlearning_rate = 1e-2\ndropout = 0.1\n${more}\n`;
async function run(adapters: string) {
  const output = join(place.root, `out${made++}`);
  const recipe = `${output}.toml`;
  writeFileSync(recipe, `[model]\npath = "model"\n[run]\noutput = "${output}"\n${adapters}`);
  return { ...(await place.mlora("run", recipe)), output };
}
const program = (keep: string) => JSON.stringify([process.execPath, join(place.root, "score.mjs"), join(place.root, keep)]);
const weights = (path: string) => readFileSync(path).toString("base64");
const saved = (output: string, name: string) => weights(join(output, name, "adapter_model.safetensors"));

describe("a program that prints numbers", () => {
  test("may write much at once, to either output", async () => {
    const much = ["sh", "-c", "head -c 3000000 /dev/zero >&2; yes '' | head -c 3000000; echo '{\"f1\": 3}'"];
    const { code, output } = await run(adapter("much", `metrics = { command = ${JSON.stringify(much)} }`));
    expect(code).toBe(0);
    expect(metrics(output, "evaluation").map((of) => of["metrics"])).toEqual(Array(5).fill({ f1: 3 }));
  });

  test("may leave a program running that holds its output open", async () => {
    const leaves = ["sh", "-c", "setsid sleep 120 & echo '{\"f1\": 4}'"];
    const { code, output } = await run(
      adapter("leaves", `steps = 2\nmetrics = { command = ${JSON.stringify(leaves)}, seconds = 60 }`).replace(
        "steps = 8\n",
        "",
      ),
    );
    expect(code).toBe(0);
    expect(metrics(output, "evaluation").map((of) => of["metrics"])).toEqual(Array(2).fill({ f1: 4 }));
  });

  test("is given the adapter at each evaluation; the best by its number is what is saved", async () => {
    const { code, out, err, output } = await run(
      adapter("kept", `metrics = { command = ${program("kept")}, best = "f1" }`) +
        adapter("least", `metrics = { command = ${program("kept")}, best = "f1", goal = "min" }`),
    );
    expect([code, err]).toEqual([0, expect.stringContaining("step 4 was better than step 8: it is what is saved")]);
    const steps = (name: string) =>
      metrics(output, "evaluation")
        .filter((of) => of["adapter"] === name)
        .map((of) => [of["step"], (of["metrics"] as { f1: number }).f1]);
    expect(steps("kept")).toEqual([
      [0, -6],
      [2, 6],
      [4, 10],
      [6, 6],
      [8, -6],
      [4, 10],
    ]);
    expect(saved(output, "kept")).toBe(weights(join(place.root, "kept", "kept-4")));
    expect(saved(output, "least")).toBe(weights(join(place.root, "kept", "least-8")));
    expect(out).toMatch(/f1/);
    expect(out).toMatch(/^ +kept .*-6 -> 10/m);
  });

  test("changes no bit of what an adapter or its neighbours learn", async () => {
    const alone = await run(adapter("a", "") + adapter("b", ""));
    const measured = await run(adapter("a", `metrics = { command = ${program("same")} }`) + adapter("b", ""));
    expect([alone.code, measured.code]).toEqual([0, 0]);
    for (const name of ["a", "b"]) expect(saved(measured.output, name)).toBe(saved(alone.output, name));
    expect(readdirSync(join(place.root, "same")).sort()).toEqual(["a-0", "a-2", "a-4", "a-6", "a-8"]);
    expect(readdirSync(place.temporary).filter((name) => name.startsWith("mlora-metrics-"))).toEqual([]);
  });
});

describe("a program that does not", () => {
  test.each([
    ["fails", '["false"]', /false ended with 1/],
    ["prints something else", '["echo", "accuracy 0.5"]', /printed "accuracy 0.5 .*, expected a JSON object of numbers/],
    ["takes too long", '["sleep", "60"], seconds = 0.2', /was still running after 0.2 s/],
  ])("%s: it is a notice, and the adapter trains to its end", async (_, command, notice) => {
    const { code, err, output } = await run(
      adapter("a", `metrics = { command = ${command.replace('"sleep", "60"', '"sh", "-c", "sleep 60"')} }`),
    );
    expect([code, err]).toEqual([0, expect.stringMatching(notice)]);
    expect(metrics(output, "step").length).toBe(8);
  });

  test("is not there, or has no rows to be compared with: refused before any work", async () => {
    const missing = await run(adapter("a", 'metrics = { command = ["/nowhere/score"] }'));
    expect([missing.code, missing.err]).toEqual([2, expect.stringContaining("error[metrics.command]")]);
    expect(existsSync(missing.output)).toBe(false);
    const plain = await run('[[adapter]]\nname = "a"\ndata = "rows.jsonl"\nmetrics = { command = ["true"] }\n');
    expect([plain.code, plain.err]).toEqual([2, expect.stringContaining("metrics needs held-out rows")]);
    const once = await run(adapter("a", 'metrics = { command = ["true"], best = "f1" }').replace("eval_every = 2\n", ""));
    expect([once.code, once.err]).toEqual([2, expect.stringContaining("give eval_every")]);
  });
});

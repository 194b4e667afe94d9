// Runs that are controlled while they train: no request changes a number of the other adapters, or of the one it delays.

import { afterAll, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { until } from "../helpers/bus.ts";
import { controls, type Status } from "../helpers/control.ts";
import { beforeItsEnd, inTheMiddle } from "../helpers/middle.ts";
import { needs } from "../helpers/needs.ts";
import { leftOf, longer, SUMS, unlike, Workplace } from "../helpers/program.ts";

const place = new Workplace(2);
afterAll(() => place[Symbol.dispose]());
const { HERE, outputOf, mlora, start, told, refusal, steps, begun, list, stateOf, becomes, undisturbed, same } =
  controls(place);

needs("nats")("a run under way", () => {
  test.each([
    [1, 60],
    [2, 24],
  ])(
    "is listed, and its adapters pause and go on as if nothing had been: %i stages",
    async (stages, length) => {
      const text = longer(unlike([0, 1, 3], "cpu", `stages = ${stages}`), length); // long enough for commands
      const alone = await undisturbed(text);
      const path = place.project(text, SUMS);
      const run = start(path);
      await begun(path, 20);
      const [{ run: id, adapters }] = (await list()) as [Status];
      expect(adapters.map(({ name }) => name)).toEqual(["a0", "a1", "a3"]);
      expect(await told("ps")).toMatch(new RegExp(`^${id} +process ${run.pid}, .*training.*\\n`));

      expect(await told("pause", id.slice(0, 6), "a1")).toContain("a1: paused");
      await becomes("a1", "paused");
      const at = steps(path, "a1").length;
      await begun(path, steps(path, "a0").length + 20, "a0");
      expect(steps(path, "a1").length).toBe(at);
      expect(await refusal("pause", id, "a1")).toContain("'a1' is paused, or has ended");
      expect(await told("resume", id, "a1")).toContain("a1: resumed");
      await begun(path, at + 3, "a1");
      expect(await told("pause", outputOf(path))).toMatch(/paused until resumed/);
      await becomes("a0", "paused");
      await until("none of them trains", 60_000, async () => (await list())[0]!.state === "waiting");
      await told("resume", outputOf(path));
      expect((await run.ended).code).toBe(0);
      same(path, alone, [0, 1, 3]);
      expect(await told("ps")).toBe("no run is under way here");
    },
    600_000,
  );

  test("takes more adapters: where it has room at once, else its stages are opened again; all as in runs of their own", async () => {
    const small = longer(unlike([2], "cpu", "slots = 3"), 100);
    const large = longer(unlike([3, 4], "cpu"), 20);
    const alike = longer(unlike([2], "cpu"), 20).replace('name = "a2"', 'name = "b2"');
    const [first, second, third] = [await undisturbed(small), await undisturbed(large), await undisturbed(alike)];
    const path = place.project(small, { ...SUMS, "more.toml": large, "taken.toml": small });
    const run = start(path);
    await begun(path, 10);
    const id = (await list())[0]!.run;
    writeFileSync(join(path, "..", "alike.toml"), alike);
    expect(await told("add", id, join(path, "..", "alike.toml"))).toBe("b2: added");
    expect(await refusal("add", id, join(path, "..", "taken.toml"))).toContain("has an adapter 'a2' already");
    const asked = [1, 2, 3, 4].map(() => mlora("add", id, join(path, "..", "more.toml")));
    const granted = (await Promise.all(asked)).filter(({ code }) => code === 0);
    expect(granted.map(({ out }) => out)).toEqual([
      expect.stringMatching(/^a3, a4: added; the stages are opened again, with room for rank 16/),
    ]);
    const { code, err } = await run.ended;
    expect([code, err]).toEqual([0, expect.stringContaining("the stages are opened again")]);
    same(path, first, [2]);
    same(path, second, [3, 4]);
    expect(leftOf(outputOf(path), "b2")).toEqual(leftOf(outputOf(third), "b2"));
  }, 600_000);

  test("gives its only slot to one of a higher priority at its next iteration, and then back", async () => {
    const low = longer(unlike([5], "cpu", "slots = 1"), 60);
    const high = longer(unlike([1], "cpu"), 20).replace('name = "a1"', 'name = "a1"\npriority = 5');
    const [first, second] = [await undisturbed(low), await undisturbed(high)];
    const path = place.project(low, { ...SUMS, "high.toml": high });
    const run = start(path);
    await begun(path, 10);
    await told("add", outputOf(path), join(path, "..", "high.toml"));
    const at = steps(path, "a5").length;
    expect((await run.ended).code).toBe(0);
    const order = steps(path).map(({ adapter }) => adapter);
    const from = order.indexOf("a1");
    expect(order.slice(0, from).length).toBeLessThanOrEqual(at + 1);
    expect(new Set(order.slice(from, from + 80))).toEqual(new Set(["a1"]));
    same(path, first, [5]);
    same(path, second, [1]);
  }, 600_000);

  test("continues with a copy of an adapter: the same one without changes, another with them; after a kill as well", async () => {
    const { path, text } = await inTheMiddle(async (factor) => {
      const text = longer(unlike([0, 1], "cpu", "checkpoint = { steps = 5 }"), 30 * factor);
      const path = place.project(text, SUMS);
      const run = start(path);
      await beforeItsEnd(run, "steps", () => steps(path, "a0").length >= 15);
      const twin = await mlora("fork", outputOf(path), "a0", "twin");
      const bold = await mlora("fork", outputOf(path), "a0", "bold", "--set", "learning_rate = 1e-2, dropout = 0");
      for (const { code, err } of [twin, bold])
        expect([code, err]).toEqual(code === 0 ? [0, ""] : [2, expect.stringMatching(/has ended|no run is under way|ends/)]);
      const areMade = twin.code === 0 && bold.code === 0;
      const isMiddle = areMade && (await beforeItsEnd(run, "steps of the copy", () => steps(path, "bold").length >= 10));
      run.kill("SIGKILL");
      await run.ended;
      if (!isMiddle) return null;
      expect(twin.out).toMatch(/^twin: continues from a0, after step \d+\n$/);
      expect(bold.out).toContain("bold");
      return { path, text };
    });
    const alone = await undisturbed(text);
    expect((await mlora("run", path)).code).toBe(0);
    same(path, alone, [0, 1]);
    const lines = (name: string) => leftOf(outputOf(path), name).steps.map(({ adapter: _, ...line }) => line);
    const [first] = lines("twin") as unknown as [{ step: number }];
    expect(first.step).toBeGreaterThan(15);
    expect(lines("twin")).toEqual(lines("a0").slice(first.step - 1));
    expect(leftOf(outputOf(path), "twin").weights).toBe(leftOf(outputOf(path), "a0").weights);
    expect(lines("bold").map(({ loss }) => loss)).not.toEqual(
      lines("a0")
        .slice(-lines("bold").length)
        .map(({ loss }) => loss),
    );
  }, 600_000);

  test("ends one adapter when told so, saved; is kept open for more; and ends when told so", async () => {
    const text = longer(unlike([0, 1], "cpu"), 20).replace(/^steps = \d+$/m, "steps = 1000000"); // a0's, until it is stopped
    const path = place.project(text, { ...SUMS, "more.toml": unlike([4], "cpu") });
    const alone = await undisturbed(unlike([4], "cpu"));
    const run = start(path, "--keep-open");
    await begun(path, 10);
    expect(await told("stop", outputOf(path), "a0")).toMatch(/^a0 ends after step \d+, and is saved$/);
    await becomes("a1", "done");
    expect(await stateOf("a0")).toBe("stopped");
    expect(existsSync(join(outputOf(path), "a0", "adapter_model.safetensors"))).toBe(true);
    expect(await refusal("fork", outputOf(path), "a1", "late")).toContain("'a1' has ended");
    await told("add", outputOf(path), join(path, "..", "more.toml"));
    await becomes("a4", "done");
    expect(await told("stop", outputOf(path))).toContain("the run ends");
    expect((await run.ended).code).toBe(0);
    same(path, alone, [4]);
  }, 600_000);

  test("refuses what cannot be, to its sender alone", async () => {
    const text = longer(unlike([0], "cpu"), 5000);
    const path = place.project(text, {
      ...SUMS,
      "bad.toml": text.replace("a0", "b0").replace("rows.jsonl", "none.jsonl"),
      "cut.toml": text.replace("a0", "b0").replace("microbatch = 60", "microbatch = 61"),
    });
    const run = start(path);
    await begun(path, 3);
    const out = outputOf(path);
    expect(await refusal("stop", "nonesuch")).toContain("there is no run 'nonesuch'; these runs are under way here:");
    expect(await refusal("stop", out, "a7")).toMatch(/the run has no adapter 'a7'\nhint: did you mean 'a0'\?/);
    expect(await refusal("fork", out, "a0", "c", "--set", "rank = 4")).toContain("cannot have another rank");
    expect(await refusal("fork", out, "a0", "c", "--set", "steps = 1")).toContain("'c' would end after 1");
    expect(await refusal("fork", out, "a0", "c", "--set", "dropout = 7")).toContain("adapter[0].dropout");
    expect(await refusal("fork", out, "a0", "../c")).toContain("names a folder");
    expect(await refusal("fork", out, "a0", "A0")).toContain("has an adapter 'A0' already");
    expect(await refusal("fork", out, "a0", "c", "--set", "steps")).toContain("--set steps:");
    expect(await refusal("add", out, join(path, "..", "bad.toml"))).toContain("none.jsonl");
    writeFileSync(join(path, "..", "other.toml"), text.replace("../model", "../another").replace("a0", "b0"));
    expect(await refusal("add", out, join(path, "..", "other.toml"))).toContain("another, the run trains on");
    expect(await refusal("add", out, join(path, "..", "cut.toml"))).toContain("61 tokens a micro-batch, the run auto and 60");
    run.kill("SIGINT");
    expect((await run.ended).code).toBe(1);
  }, 600_000);

  test("is known to its user alone, by a file that goes with it; that of a killed run is taken away", async () => {
    const path = place.project(longer(unlike([0], "cpu"), 5000), SUMS);
    const run = start(path);
    await begun(path, 1);
    const folder = join(HERE.MLORA_CACHE, "runs");
    const [file] = readdirSync(folder);
    const { reach } = JSON.parse(readFileSync(join(folder, file!), "utf8"));
    expect(statSync(join(folder, file!)).mode & 0o777).toBe(0o600);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    const listed = await told("ps", "--json");
    for (const secret of [reach.address.login.token, reach.key]) expect(listed).not.toContain(secret);
    run.kill("SIGKILL");
    await run.ended;
    expect(await told("ps")).toBe("no run is under way here");
    expect(readdirSync(folder)).toEqual([]);
  }, 600_000);
});

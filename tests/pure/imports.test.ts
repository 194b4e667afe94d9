import { describe, expect, test } from "bun:test";
import { breaches, circles } from "../../scripts/imports.ts";

const check = (path: string, ...lines: readonly string[]): string[] => breaches({ path, text: lines.join("\n") });

describe("which folder may import which", () => {
  test("what the rules allow", () => {
    expect(
      check("src/plan/plan.ts", 'import { sum } from "../base/shape.ts";', 'import { cut } from "../schedule/steps.ts";'),
    ).toEqual([]);
    expect(check("src/plan/plan.ts", 'import { part } from "./part.ts";')).toEqual([]);
    expect(check("src/plan/memory.ts", 'import { stageBufferBytes } from "../engine/stage-buffers.ts";')).toEqual([]);
    expect(check("src/device/cpu/host.ts", 'import { native } from "../../../ffi/native.ts";')).toEqual([]);
    expect(check("src/recipe/load.ts", 'import * as v from "valibot";')).toEqual([]);
  });

  test("a folder that is not allowed, with its line", () => {
    const found = check("src/plan/plan.ts", "// why", "", 'import { Decoder } from "../engine/layers/decoder.ts";');
    expect(found).toHaveLength(1);
    expect(found[0]).toStartWith(
      "src/plan/plan.ts:3: imports src/engine/layers/decoder.ts; plan may import base, methods, objectives, recipe",
    );
  });

  test("a device knows no kernel", () => {
    expect(check("src/device/cpu.ts", 'import { xent } from "../ops/xent.ts";')).toHaveLength(1);
  });

  test.each([
    ["over several lines", 'import {\n  a,\n  b,\n} from "../device/open.ts";'],
    ["for its effects", 'import "../device/open.ts";'],
    ["later", 'const { open } = await import("../device/open.ts");'],
    ["passed on", 'export { a } from "../device/open.ts";'],
    ["passed on whole", 'export * from "../device/open.ts";'],
    ["with a type among values", 'import { type A, b } from "../device/open.ts";'],
    ["after another import", 'import { x } from "./x.ts";\nimport { a } from "../device/open.ts";'],
  ])("an import %s", (_, text) => {
    expect(check("src/plan/plan.ts", text)).toHaveLength(1);
  });

  test("as types only, where the rules say so", () => {
    for (const text of [
      'import type { Device } from "../device/device.ts";',
      'export type { Device } from "../device/device.ts";',
      'type D = typeof import("../device/device.ts");',
    ]) {
      expect(check("src/plan/plan.ts", text)).toEqual([]);
      expect(check("src/recipe/load.ts", text)).toHaveLength(1);
    }
  });

  test("cli knows session and nothing below it, but for doctor and stage", () => {
    const plan = 'import { makePlan } from "../plan/plan.ts";';
    for (const command of ["run", "plan", "data", "export", "generate", "bench", "remote"]) {
      expect(check(`src/cli/${command}.ts`, plan)).toHaveLength(1);
      for (const below of ["bus", "cluster", "engine", "data", "files", "schedule", "methods", "objectives", "families"])
        expect(check(`src/cli/${command}.ts`, `import { a } from "../${below}/a.ts";`)).toHaveLength(1);
    }
    expect(check("src/cli/run.ts", 'import type { Plan } from "../plan/plan.ts";')).toEqual([]);
    expect(check("src/cli/draw/svg.ts", 'import { makePlan } from "../../plan/plan.ts";')).toHaveLength(1);
    expect(check("src/cli/stage.ts", 'import { runStage } from "../cluster/stage-process.ts";')).toEqual([]);
    expect(check("src/cli/doctor/bus.ts", 'import { a } from "../../bus/a.ts";')).toEqual([]);
  });

  test.each(["session", "cluster"])("%s knows no front end", (folder) => {
    expect(check(`src/${folder}/x.ts`, 'import type { RunFlags } from "../cli/run.ts";')).toHaveLength(1);
  });

  test("cluster knows no session", () => {
    expect(check("src/cluster/x.ts", 'import { openSession } from "../session/session.ts";')).toHaveLength(1);
  });

  test("no folder escapes for want of a rule", () => {
    expect(check("src/new/x.ts", 'import { a } from "../base/a.ts";')).toEqual([
      "src/new/x.ts:1: the folder 'new' has no rule in scripts/imports.ts",
    ]);
    expect(check("src/base/x.ts", 'import { a } from "../helpers/tiny.ts";')).toHaveLength(1);
  });
});

describe("values imported in a circle", () => {
  const house = (bs: string) =>
    circles([
      { path: "src/plan/a.ts", text: 'import { b } from "./b.ts";' },
      { path: "src/plan/b.ts", text: 'import {\n  c,\n} from "./c.ts";\nimport { d } from "./d.ts";' },
      { path: "src/plan/c.ts", text: bs },
      { path: "src/plan/d.ts", text: 'import { x } from "../base/x.ts";' },
    ]);

  test("are named, from the first file of the circle to itself", () => {
    expect(house('import { a } from "./a.ts";')).toEqual(["src/plan/a.ts -> src/plan/b.ts -> src/plan/c.ts -> src/plan/a.ts"]);
    expect(house('export { b } from "./b.ts";')).toEqual(["src/plan/b.ts -> src/plan/c.ts -> src/plan/b.ts"]);
    expect(house('import { c } from "./c.ts";')).toEqual(["src/plan/c.ts -> src/plan/c.ts"]);
  });

  test("but not types, what is imported later, and files that two import", () => {
    for (const text of [
      'import type { A } from "./a.ts";',
      'export type { A } from "./a.ts";',
      'const { a } = await import("./a.ts");',
      '// import { a } from "./a.ts";',
      'import { d } from "./d.ts";',
    ])
      expect(house(text)).toEqual([]);
  });

  const parts = (folder: string, last: string) =>
    circles([
      { path: `${folder}/top.ts`, text: 'import { a } from "./one/a.ts";' },
      { path: `${folder}/one/a.ts`, text: 'import { b } from "../two/b.ts";\nimport { c } from "./c.ts";' },
      { path: `${folder}/one/c.ts`, text: 'import { x } from "../../base/x.ts";' },
      { path: `${folder}/two/b.ts`, text: "" },
      { path: `${folder}/two/d.ts`, text: last },
    ]);

  test.each(["src/session", "src/engine"])("between parts of %s, through files that do not", (folder) => {
    const [one, two] = [`${folder}/one`, `${folder}/two`];
    expect(parts(folder, 'import { c } from "../one/c.ts";')).toEqual([`${one} -> ${two} -> ${one}`]);
    expect(parts(folder, 'import { top } from "../top.ts";')).toEqual([`${folder} -> ${one} -> ${two} -> ${folder}`]);
    for (const text of ['import type { C } from "../one/c.ts";', 'import { b } from "./b.ts";'])
      expect(parts(folder, text)).toEqual([]);
    expect(parts("src/plan", 'import { c } from "../one/c.ts";')).toEqual([]);
  });
});

test("what compares the name of a definition outside its folder", () => {
  for (const text of [
    'if (objective.name === "dpo") x();',
    'switch (name) {\n  case "kto":\n}',
    'const half = spec.family === "qwen3";',
    'const b = "sft" !== a || a !== "sft";',
  ])
    expect(check("src/session/evaluation/batches.ts", text)).toHaveLength(1);
  expect(check("src/files/merge.ts", 'const m = adapter.method === "dora" ? 1 : 0;')).toHaveLength(1);
  expect(check("src/objectives/kto.ts", 'if (name === "kto") x();')).toEqual([]);
  expect(check("src/session/evaluation/batches.ts", 'const work = { name: "sft" };')).toEqual([]);
});

describe("one door for each foreign effect", () => {
  test.each([
    ["bun:ffi", "src/device/cpu.ts", 'import { ptr } from "bun:ffi";', "ffi/memory.ts"],
    ["a library", "ffi/blas.ts", "const lib = dlopen(path, table);", "ffi/open.ts"],
    ["cac", "src/cli/run.ts", 'import { cac } from "cac";', "src/main.ts"],
    ["NATS", "src/session/training/training.ts", 'import { connect } from "@nats-io/transport-node";', "src/bus/nats.ts"],
    ["the end", "src/cli/run.ts", "process.exit(1);", "src/main.ts"],
    ["the exit code", "src/cli/run.ts", "process.exitCode = 1;", "src/main.ts"],
    ["the environment", "src/base/log.ts", 'const level = process.env["X"];', "src/base/env.ts"],
    ["Bun's environment", "src/base/log.ts", "const level = Bun.env.X;", "src/base/env.ts"],
    ["a program", "src/cli/doctor.ts", "Bun.spawnSync([program]);", "src/cluster/spawn.ts"],
    ["the clock", "src/session/training/training.ts", "const t = Date.now();", "src/base/clock.ts"],
    ["the fine clock", "src/session/training/training.ts", "const t = performance.now();", "src/base/clock.ts"],
    ["chance", "src/base/rng.ts", "const x = Math.random();", null],
  ])("%s", (_, path, text, door) => {
    expect(check(path, text)).toHaveLength(1);
    if (door !== null) expect(check(door, text)).toEqual([]);
  });

  test("in a template, but not in a comment", () => {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is code under test
    expect(check("src/cli/run.ts", "const s = `${process.env.HOME}`;")).toHaveLength(1);
    expect(check("src/cli/run.ts", "// never process.exit()", "/* nor\n Date.now() */ const a = 1;")).toEqual([]);
    expect(check("src/cli/run.ts", 'const url = "x//y"; process.exit();')).toHaveLength(1);
  });
});

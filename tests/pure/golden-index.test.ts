import { describe, expect, test } from "bun:test";
import { cpSync, existsSync, lstatSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compareFiles } from "../../scripts/golden/compare.ts";
import { MAKERS } from "../../scripts/golden/index.ts";
import { copyForMakers, indexFaults } from "../../scripts/golden.ts";
import { writeSafetensors } from "../../src/files/safetensors.ts";
import { cardOfAllParts } from "../helpers/push-card.ts";

const KEPT = join(import.meta.dir, "..", "golden");

const folder = () => {
  const path = mkdtempSync(join(tmpdir(), "golden-test-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
};

describe("the index of golden files", () => {
  test("lists every script and every file of tests/golden, once", () => {
    expect(indexFaults(KEPT)).toEqual([]);
  });

  test("names a script that it lacks, a file that no maker makes, and one that is missing", () => {
    using copy = folder();
    cpSync(KEPT, copy.path, { recursive: true });
    writeFileSync(join(copy.path, "base", "make_more.py"), "");
    writeFileSync(join(copy.path, "base", "more.json"), "");
    rmSync(join(copy.path, "nf4", "nf4.json"));
    rmSync(join(copy.path, "trl", "make.py"));
    expect(indexFaults(copy.path)).toEqual([
      "base/make_more.py: no maker of scripts/golden/index.ts",
      "base/more.json: made by no maker of scripts/golden/index.ts",
      "trl/make.py: in the index, but missing",
      "nf4 makes nf4/nf4.json, but no such file is kept",
    ]);
  });

  test("pins every package", () => {
    for (const { packages } of Object.values(MAKERS)) for (const pin of packages) expect(pin).toMatch(/^[\w-]+==[\d.]+$/);
  });
});

describe("the copy that makers work in", () => {
  test("has what they start of the checkout, and only golden files that may be changed", () => {
    using work = folder();
    const copy = copyForMakers(work.path);
    const started = Object.values(MAKERS).flatMap(({ script }) =>
      [...readFileSync(join(copy, script), "utf8").matchAll(/\bROOT \/ "([^"]+)"/g)].map(([, path]) => path!),
    );
    expect(started).toContain("node_modules/.bin/bun");
    expect(started.filter((path) => !existsSync(join(work.path, path)))).toEqual([]);
    const links = Object.values(MAKERS).filter(({ script }) => lstatSync(join(copy, script)).isSymbolicLink());
    expect(links).toEqual([]);
    const { stdout } = Bun.spawnSync([join(work.path, "node_modules/.bin/bun"), join(work.path, "tests/helpers/push-card.ts")]);
    expect(JSON.parse(stdout.toString())).toBe(cardOfAllParts());
  });
});

describe("a golden file that is made again", () => {
  const compare = (name: string, kept: string, made: string, tolerance: number | null) => {
    using place = folder();
    const [a, b] = [join(place.path, `a${name}`), join(place.path, `b${name}`)];
    writeFileSync(a, kept);
    writeFileSync(b, made);
    return compareFiles(a, b, tolerance);
  };

  test("may be the same bytes", () => {
    expect(compare(".json", "[1]", "[1]", null)).toEqual({ same: true, distance: 0, added: [] });
  });

  test("may have been made with other versions, and with numbers that are near enough", () => {
    const text = (version: string, x: number) => JSON.stringify({ made_with: { torch: version }, x: [100, x] });
    expect(compare(".json", text("1", 0.5), text("2", 0.5), null)).toEqual({ same: true, distance: 0, added: [] });
    const near = compare(".json", text("1", 0.5), text("1", 0.51), 1e-3);
    expect(near.same && near.distance).toBeCloseTo(1e-4, 8);
  });

  test("may have keys that the maker has come to write since; null is as good as nothing", () => {
    expect(compare(".json", '{"a": 1, "b": null}', '{"a": 1, "c": null}', null)).toEqual({
      same: true,
      distance: 0,
      added: [],
    });
    expect(compare(".json", '[{"a": 1}]', '[{"a": 1, "b": 2}]', null)).toEqual({ same: true, distance: 0, added: ["b"] });
  });

  test.each([
    [".json", '{"a": [1, 2]}', '{"a": [1, 2.1]}', 0.01, "a[1]: expected 2, found 2.1"],
    [".json", '{"a": 1}', '{"a": 1.0001}', null, "a: expected 1, found 1.0001"],
    [".json", '{"a": 1}', '{"b": 1}', 1, "a: expected 1, found nothing"],
    [".json", '{"a": [1]}', '{"a": [1, 1]}', 1, "a.length: expected 1, found 2"],
    [".json", '{"a": 1}', '{"a": null}', 1, "a: expected 1, found null"],
    [".jsonl", "1\n", "2\n", 1, "expected the bytes kept, found 2 others"],
  ])("is not it: %s %s, %s within %p", (name, kept, made, tolerance, why) => {
    expect(compare(name, kept, made, tolerance)).toEqual({ same: false, why });
  });

  test("is compared tensor by tensor", () => {
    using place = folder();
    const write = (file: string, values: readonly number[], shape: readonly number[]) => {
      const path = join(place.path, file);
      writeSafetensors(path, [{ name: "x", dtype: "f32", shape, data: new Float32Array(values) }]);
      return path;
    };
    const kept = write("kept.safetensors", [1, 2, 4, 8], [4]);
    expect(compareFiles(kept, write("near.safetensors", [1, 2, 4, 8.5], [4]), 0.1)).toEqual({
      same: true,
      distance: 0.0625,
      added: [],
    });
    expect(compareFiles(kept, write("far.safetensors", [1, 2, 4, 9], [4]), 0.1)).toMatchObject({ same: false });
    expect(compareFiles(kept, write("nan.safetensors", [1, 2, Number.NaN, 8], [4]), 0.1)).toMatchObject({ same: false });
    const other = join(place.path, "other.safetensors");
    const x = { name: "x", dtype: "f32" as const, shape: [4], data: new Float32Array([1, 2, 4, 8]) };
    writeSafetensors(other, [x, { ...x, name: "y" }]);
    expect(compareFiles(kept, other, 0.1)).toEqual({ same: false, why: "expected the tensors kept, found also y" });
    expect(compareFiles(kept, write("shape.safetensors", [1, 2, 4, 8], [2, 2]), 0.1)).toMatchObject({ same: false });
  });
});

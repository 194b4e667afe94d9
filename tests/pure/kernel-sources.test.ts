// The sources of kernels: that each family has all of its files, and what decides that a kernel is compiled again: its code,
// and nothing that is only read by people or by what lists it.

import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { Kernel } from "../../src/device/kernel.ts";
import { CopyOfSources, ROOT } from "../helpers/extending.ts";

const PYTHON = join(ROOT, ".venv/bin/python");

/** Names of the files of a folder with this ending, without it. */
const namesIn = (folder: string, ending: string): string[] =>
  readdirSync(join(ROOT, folder))
    .filter((name) => name.endsWith(ending))
    .map((name) => basename(name, ending))
    .sort();

/** What several families are made of, parts of large ones, and what reads and writes weights of files. */
const SHARED_C = ["dropout", "encode", "factors", "gemm", "gemm_amx", "gemm_bf16", "memory", "parallel", "product", "stored"];
const SHARED_PY = [
  "adapters",
  "attention_hopper",
  "attention_hopper_keys",
  "attention_sink",
  "attention_variants",
  "chunks",
  "clamp",
  "codegen",
  "compile",
  "decode_alone",
  "deltanet_backward",
  "dropout",
  "fewrows_hopper",
  "fewrows_normed",
  "fewrows_packed",
  "fewrows_sums",
  "fp8",
  "fp8_swiglu",
  "linear_variants",
  "nf4_fp8",
  "overlap",
  "rope_part",
  "statespace_backward",
  "tile",
  "unpack",
  "variants",
];
/** Their C is product.c, dropout.c and combine.c; on a CPU tokens are chosen by base/sample.ts. */
const WITHOUT_C = ["choose", "expert-lora", "experts", "fewexperts", "fewrows", "fewtables", "linear", "lora"];

test("each family of kernels has its three files, by one name", () => {
  const families = namesIn("src/ops", ".ts").filter((name) => name !== "op");
  expect(namesIn("kernels/triton", ".py")).toEqual([...families, ...SHARED_PY].sort());
  expect(namesIn("ffi/native", ".c")).toEqual([...families.filter((name) => !WITHOUT_C.includes(name)), ...SHARED_C].sort());
});

test("each kernel has a name of its own", async () => {
  const names: string[] = [];
  for (const family of namesIn("src/ops", ".ts"))
    for (const exported of Object.values(await import(join(ROOT, "src/ops", `${family}.ts`))))
      if (typeof exported === "function" && "kernel" in exported) names.push((exported.kernel as Kernel<object>).name);
  expect(names.length).toBeGreaterThan(20);
  expect(new Set(names).size).toBe(names.length);
});

/** Of launches of a record, which write no table, parameter or weight (src/engine/generation/row-pass.ts). */
const WRITTEN = [
  "part",
  "low",
  "x",
  "x_row",
  "rows",
  "w",
  "y",
  "h",
  "out",
  "to",
  "qkv",
  "cache",
  "k_ND",
  "v_ND",
  "residual",
  "blocks",
  "source",
  "place",
  "experts",
  "weights",
  "act",
];

test("a kernel that overlaps with the launch before it reads and writes nothing of launches before it waits for them", () => {
  let kernels = 0;
  for (const file of namesIn("kernels/triton", ".py")) {
    const source = readFileSync(join(ROOT, "kernels/triton", `${file}.py`), "utf8");
    if (file === "overlap") continue;
    for (const of of source
      .split("\n# What is compiled.")[0]!
      .split(/@(?:triton|gluon)\.jit\n/)
      .slice(1)) {
      const [, name, parameters, body] = /^def (\w+)\((.*?)\):\n(.*)$/s.exec(of)! as unknown as [
        string,
        string,
        string,
        string,
      ];
      if (!/OVERLAPS: [tg]l\.constexpr/.test(parameters)) continue;
      kernels++;
      const waits = body.indexOf("wait_for_previous(OVERLAPS)");
      const isHelper = name.endsWith("_tile");
      if (waits < 0) {
        // Each of its programs is one helper, which waits.
        expect(body.match(/\b\w+_tile\(.*OVERLAPS\)/g)!.length, name).toBe(body.match(/^\s+(?:if|else)\b/gm)!.length - 1);
        expect(isHelper, name).toBe(false);
      }
      const before = waits < 0 ? body : body.slice(0, waits);
      expect(before, name).not.toMatch(/[tg]l\.store/);
      for (const [, read] of before.matchAll(/(?:[tg]l\.load|load_tile)\((\w+)/g)) expect(WRITTEN, name).not.toContain(read!);
      const streamed = [...before.matchAll(/\b(?:load|copy_rows)\(\w+, (\w+)/g)].map(([, read]) => read!);
      expect(["w", "a_row"], name).toEqual(expect.arrayContaining(streamed));
      // A helper waits for the kernel that calls it, which has let the next one begin.
      if (!isHelper) expect(body.trimStart().replace(/^"""[^"]*"""\s*/, ""), name).toStartWith("begin_next(OVERLAPS)");
    }
  }
  expect(kernels).toBe(18);
});

test("what is compiled is listed without Triton", async () => {
  const script = "import sys; sys.modules['triton'] = None; import variants; print(len(variants.variants()))";
  const child = Bun.spawn([PYTHON, "-B", "-c", script], {
    env: { ...process.env, PYTHONPATH: join(ROOT, "kernels/triton") },
    stdout: "pipe",
  });
  expect(Number(await child.stdout.text())).toBeGreaterThan(100);
});

/** A copy of the kernels' sources where xent.py can be changed. */
function copyOfXent() {
  const copy = new CopyOfSources();
  copy.take("kernels/triton");
  const path = copy.at("kernels/triton/xent.py");
  expect(existsSync(path)).toBe(true);
  const rows = () => copy.run(PYTHON, "-B", "kernels/triton/compile.py", "--rows");
  const hashes = async (): Promise<string[]> => {
    const [code, out] = await rows();
    expect(code).toBe(0);
    const { kernels } = JSON.parse(out) as { kernels: { name: string; source_sha256: string }[] };
    return kernels.filter(({ name }) => name === "xent").map(({ source_sha256 }) => source_sha256);
  };
  const write = (text: string) => writeFileSync(path, text);
  return { text: readFileSync(path, "utf8"), write, rows, hashes, [Symbol.dispose]: () => copy[Symbol.dispose]() };
}

test("comments and docstrings of a kernel are no part of its hash, code is", async () => {
  using xent = copyOfXent();
  const before = await xent.hashes();
  expect(before.length).toBeGreaterThan(0);
  const commented = xent.text
    .replace(/^"""/, '"""Other words.\n\n')
    .replace(/^(@triton\.jit)$/gm, '# A comment, with a "quote".\n\n$1')
    .replace(/^import triton$/m, "import triton  # why");
  expect(commented).not.toBe(xent.text);
  xent.write(commented);
  expect(await xent.hashes()).toEqual(before);
  const added = (line: string) => xent.text.replace(/^LOWEST/m, `${line}\nLOWEST`);
  xent.write(added('ADDED = "# no comment"'));
  const changed = await xent.hashes();
  expect(changed).not.toEqual(before);
  xent.write(added('ADDED = "# another text"'));
  expect(await xent.hashes()).not.toEqual(changed);
});

test("nor is the list of its variants, of which a row counts for itself; what is used above stands there", async () => {
  using xent = copyOfXent();
  const before = await xent.hashes();
  xent.write(`${xent.text}\nOTHER = 1\n`);
  expect(await xent.hashes()).toEqual(before);
  xent.write(xent.text.replace("LANES=512, ", "LANES=256, "));
  const changed = await xent.hashes();
  for (const hash of before) expect(changed).not.toContain(hash);
  xent.write(xent.text.replace("tl.program_id(0)", "tl.program_id(OTHER)").concat("\nOTHER = 0\n"));
  const [code] = await xent.rows();
  expect(code).toBe(1);
});

// The compiled GPU kernels: what scripts/kernels makes, what it finds stale, and whether the manifest tells the truth about the
// PTX. Needs no GPU. Builds and damage happen in copies of kernels/ in a temporary folder.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  constants,
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assetNames, readAsset } from "../../src/base/assets.ts";
import { alignUp } from "../../src/base/shape.ts";
import { isCompiled, type KernelEntry, type Manifest, readManifest } from "../../src/device/cuda/manifest.ts";
import { needs } from "../helpers/needs.ts";

const ROOT = join(import.meta.dir, "../..");
const PYTHON = join(ROOT, ".venv/bin/python");

type Entry = KernelEntry & {
  readonly ptx_sha256: string;
  readonly cubins_sha256: Readonly<Record<string, string>>;
};

async function run(command: readonly string[], environment: Record<string, string> = {}) {
  const child = Bun.spawn([...command], { env: { ...process.env, ...environment }, stdout: "pipe", stderr: "pipe" });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { out, err, code };
}

const textOf = (name: string) => new TextDecoder().decode(readAsset(name));
const sha256 = (content: Uint8Array | string) => new Bun.CryptoHasher("sha256").update(content).digest("hex");

let place = "";
beforeAll(() => {
  place = mkdtempSync(join(tmpdir(), "mlora kernels ")); // with spaces
});
afterAll(() => rmSync(place, { recursive: true, force: true }));

needs("kernels")("the kernels of this checkout", () => {
  const kernels = () => readManifest() as readonly Entry[];

  test("are those of its sources", async () => {
    expect(await run([PYTHON, "-B", join(ROOT, "kernels/triton/compile.py"), "--verify"])).toEqual({
      out: "",
      err: "",
      code: 0,
    });
  });

  test("are the rows of variants.py, one each", async () => {
    const print = "import json, variants; print(json.dumps(variants.variants()))";
    const { out, code } = await run([PYTHON, "-B", "-c", print], { PYTHONPATH: join(ROOT, "kernels/triton") });
    expect(code).toBe(0);
    const rows: readonly (Omit<Entry, "name"> & { kernel: string; signature: object })[] = JSON.parse(out);
    const facts = ({ kinds, arch, dtype, constants, launch }: (typeof rows)[number] | Entry) => ({
      ...{ kinds, arch, dtype, constants, launch },
    });
    expect(
      kernels().map((entry) => ({ ...facts(entry), name: entry.name, params: entry.params.map(({ name }) => name) })),
    ).toEqual(rows.map((row) => ({ ...facts(row), name: row.kernel, params: Object.keys(row.signature) })));
    expect(new Set(kernels().map(({ source_sha256 }) => source_sha256)).size).toBe(rows.length);
  });

  test("lie next to the manifest, whole, and nothing else does", () => {
    const files = kernels().flatMap((entry) => [
      [entry.ptx, entry.ptx_sha256],
      ...Object.entries(entry.cubins).map(([major, file]) => [file, entry.cubins_sha256[major]!]),
    ]) as [string, string][];
    const listed = ["kernels/manifest.json", ...files.map(([file]) => `kernels/${file}`)].sort();
    expect(assetNames().filter((name) => name.startsWith("kernels/"))).toEqual(listed);
    for (const [file, sha] of files) expect(sha256(readAsset(`kernels/${file}`)), file).toBe(sha);
  });

  test("take the parameters that the manifest says, in the PTX's own words", () => {
    for (const entry of kernels())
      expect(declared(textOf(`kernels/${entry.ptx}`), entry.entry), entry.ptx).toEqual(promised(entry));
  });

  test("are for the architecture and the block size that the manifest says", () => {
    for (const { arch, entry, ptx, threads } of kernels()) {
      const text = textOf(`kernels/${ptx}`);
      expect(text).toContain(`.target ${arch}\n`);
      expect(Number(/\.reqntid (\d+)/.exec(text)?.[1]), `${entry} in ${ptx}`).toBe(threads);
    }
  });

  test("round each sum and each product, so that none are fused but where a source says so", () => {
    // Without .rn a compiler of PTX may make one operation of a product and a sum, in one variant and not in another.
    const unrounded = /\b(?:add|sub|mul|mad)(?:\.(?:ftz|sat))*\.b?f(?:16|32|64)(?:x2)?\b/g;
    expect("add.f32 mul.ftz.f32 sub.bf16x2 mad.f64".match(unrounded)).toHaveLength(4);
    expect("add.rn.f32 mul.rn.ftz.f32 fma.rn.f32 add.s32 mul.wide.s32".match(unrounded)).toBeNull();
    // Triton's conversion of int8 to bf16 takes one of two parts of a code's bits from the other: no product is near.
    const converted = /\bsub\.bf16x2 %r\d+, (?:l1, l2|h1, h2);/g;
    const rounded = new Set<string>();
    for (const { ptx } of kernels()) {
      const text = textOf(`kernels/${ptx}`).replace(converted, "");
      expect([...new Set(text.match(unrounded))], ptx).toEqual([]);
      for (const [operation] of text.matchAll(/\b(?:add|sub|mul|fma)\.rn\.f32\b/g)) rounded.add(operation);
    }
    expect([...rounded].sort()).toEqual(["add.rn.f32", "fma.rn.f32", "mul.rn.f32", "sub.rn.f32"]);
  });

  test("cut no number to f16 on its way to e4m3 but with a bit that stands for what is cut off", () => {
    // As Triton converts f32 before Hopper: what lies just above the middle of two numbers would go to the lower one.
    const cut = kernels().filter(({ ptx }) => textOf(`kernels/${ptx}`).includes("cvt.rz.f16.f32"));
    expect(cut.filter(({ constants }) => constants["HALVES"] !== 1).map(({ ptx }) => ptx)).toEqual([]);
    expect(new Set(cut.map(({ name }) => name))).toContain("fp8_quantise");
  });

  test("give no register another value that a product under way reads, where a loop comes to the same product again", () => {
    let products = 0;
    for (const { arch, ptx } of kernels()) {
      if (arch !== "sm_90a") continue;
      const lines = textOf(`kernels/${ptx}`).split("\n");
      const labels = new Map(lines.flatMap((line, i) => (/^\$\w+:/.test(line) ? [[line.split(":")[0]!, i] as const] : [])));
      for (const [end, line] of lines.entries()) {
        const begin = labels.get(/\bbra(?:\.uni)?\s+(\$\w+);/.exec(line)?.[1] ?? "") ?? end;
        for (let i = begin; i < end; i++) {
          // Accumulators, then a fragment in registers in place of a matrix in shared memory.
          const read = /wgmma\.mma_async[^;]*\}\s*,\s*\{([^}]*)\}/.exec(lines[i]!)?.[1]?.split(/\s*,\s*/);
          if (!read) continue;
          products++;
          const registers = new Set(read);
          let groups = -1; // begun after that of the product
          for (let step = 1; step <= end - begin; step++) {
            const other = lines[begin + ((i - begin + step) % (end - begin))]!;
            if (other.includes("wgmma.commit_group")) groups++;
            const left = /wgmma\.wait_group\.sync\.aligned (\d+)/.exec(other)?.[1];
            if (left !== undefined && groups >= Number(left)) break;
            if (other.includes("wgmma")) continue;
            const written = /^\s*(?:@!?%p\d+ )?[\w.:]+\s+(?:\{([^}]*)\}|(%\w+)),/.exec(other);
            for (const register of (written?.[1] ?? written?.[2] ?? "").split(/\s*,\s*/))
              if (registers.has(register))
                throw new Error(`${ptx}: line ${begin + step} writes ${register}, read in line ${i + 1}`);
          }
        }
      }
    }
    expect(products).toBeGreaterThan(200);
  });

  test("come with machine code for every kind's GPUs, which is ELF", () => {
    for (const { arch, kinds, cubins, ptx } of kernels()) {
      const hopper = arch === "sm_90a" ? ["9"] : kinds.join() === "ptr" ? ["8"] : ["8", "9"];
      expect(Object.keys(cubins), ptx).toEqual(hopper);
      for (const file of Object.values(cubins))
        expect(readAsset(`kernels/${file}`).subarray(0, 4), file).toEqual(new Uint8Array([0x7f, 0x45, 0x4c, 0x46]));
    }
  });

  test("fit into the shared memory of the smallest GPU that they are for", () => {
    const most = { sm_80: 99 * 1024, sm_89: 99 * 1024, sm_90a: 227 * 1024 } as const; // a block's, on 8.6 and 8.9, and on 9.0
    for (const { arch, shared, ptx, kinds, constants } of kernels()) {
      const isWidest = kinds.join() === "f32" && constants["HEAD_DIM"] === 512; // on 8.0 and 9.0; refused by name on others
      expect(shared, ptx).toBeLessThanOrEqual(isWidest ? 163 * 1024 : most[arch as keyof typeof most]);
    }
  });

  test("name no folder of the machine that made them", () => {
    for (const name of assetNames().filter((name) => name.startsWith("kernels/")))
      expect(Buffer.from(readAsset(name)).includes(ROOT), name).toBe(false);
  });

  test("are in dist/mlora, all that are not launched by tests alone", async () => {
    const { out } = await run([join(ROOT, "dist/mlora"), "doctor", "--json"], { MLORA_CACHE: join(place, "cache") });
    const used = kernels().filter(({ launch }) => !launch["tests"]);
    expect(used.length).toBeLessThan(kernels().length);
    const counts = Object.fromEntries([...Map.groupBy(used, ({ arch }) => arch)].map(([arch, all]) => [arch, all.length]));
    expect(JSON.parse(out).parts.gpu_kernels).toMatchObject({ state: "ok", archs: counts });
  });

  describe("--verify finds", () => {
    let copy = "";
    beforeAll(() => {
      copy = join(place, "damaged");
      cpSync(join(ROOT, "kernels"), copy, { recursive: true, mode: constants.COPYFILE_FICLONE });
    });
    const verify = () => run([PYTHON, "-B", join(copy, "triton/compile.py"), "--verify"]);
    const flip = (content: Buffer) => {
      content[content.length >> 1]! ^= 1;
      return content;
    };

    /** What stands below the list of variants is no kernel's. */
    const withCode = (content: Buffer) => {
      const [code, ...listed] = content.toString().split("# What is compiled.");
      return Buffer.from([`${code}\nADDED = 1\n`, ...listed].join("# What is compiled."));
    };

    /** Changes a file, looks, and puts it back. */
    async function after(file: string, change: (content: Buffer) => Buffer | null) {
      const path = join(copy, file);
      const before = existsSync(path) ? readFileSync(path) : null;
      const changed = change(Buffer.from(before ?? ""));
      if (changed === null) rmSync(path);
      else writeFileSync(path, changed);
      const { out, code } = await verify();
      if (before === null) rmSync(path);
      else writeFileSync(path, before);
      expect(code, out).toBe(1);
      return out;
    }

    test("nothing in a copy, wherever it lies", async () => {
      expect(await verify()).toEqual({ out: "", err: "", code: 0 });
    });

    test("kernels that import a changed file, and no others", async () => {
      const out = await after("triton/squaredrelu.py", withCode);
      expect(out).toContain("stale or missing: squaredrelu_forward bf16 sm_80 BLOCK=1024\n");
      expect(out.match(/stale or missing: (?!squaredrelu)/g)).toBeNull();
      const shared = await after("triton/dropout.py", withCode);
      expect(shared).toMatch(/stale or missing: dora_norm/);
      expect(shared).not.toContain("squaredrelu");
    });

    test("nothing where a comment was added", async () => {
      const path = join(copy, "triton/swiglu.py");
      const before = readFileSync(path);
      writeFileSync(path, Buffer.concat([before, Buffer.from("\n# a comment\n")]));
      expect(await verify()).toEqual({ out: "", err: "", code: 0 });
      writeFileSync(path, before);
    });

    test("a changed compiler", async () => {
      const number = kernels().length;
      const changed = await after("triton/codegen.py", withCode);
      expect(changed).toContain(`and ${number - 20} more`);
    });

    test("a changed byte of PTX, of machine code, of the manifest", async () => {
      const [first] = kernels();
      for (const file of [first!.ptx, Object.values(first!.cubins)[0]!]) {
        const out = await after(`build/${file}`, flip);
        expect(out).toContain(`stale or missing: ${first!.name} `);
      }
      expect(await after("build/manifest.json", flip)).toMatch(/manifest\.json\n$/);
      expect(
        await after("build/manifest.json", (content) =>
          Buffer.from(content.toString().replace(/"shared": \d+/, '"shared": 1')),
        ),
      ).toBe("kernels: not what the files are: manifest.json\n");
    });

    test("a file that is missing, and one that no row has made", async () => {
      const [first] = kernels();
      expect(await after(`build/${first!.ptx}`, () => null)).toContain(`stale or missing: ${first!.name} `);
      expect(await after("build/manifest.json", () => null)).toBe("kernels: missing or broken: manifest.json\n");
      expect(await after("build/sm_80/old.ptx", () => Buffer.from("x"))).toBe("kernels: left over: sm_80/old.ptx\n");
    });
  });

  describe("a build", () => {
    let copy = "";
    beforeAll(() => {
      copy = join(place, "fresh");
      cpSync(join(ROOT, "kernels/triton"), join(copy, "triton"), { recursive: true });
    });
    const compile = (...args: string[]) => run([PYTHON, "-B", join(copy, "triton/compile.py"), ...args]);
    const only = () => compile("--only", "swiglu_forward");
    const files = () => readdirSync(join(copy, "build"), { recursive: true }).map(String).sort();
    const rows = (): Manifest["kernels"] => JSON.parse(readFileSync(join(copy, "build/manifest.json"), "utf8")).kernels;
    const listed = () => rows().filter(isCompiled) as unknown as readonly Entry[];

    test("elsewhere makes the same bytes, and says what is left to do", async () => {
      const { out, err, code } = await only();
      expect(code, err).toBe(0);
      expect(err).toMatch(/^kernels: 2 of 2, \d+ s\n$/);
      expect(out).toContain(`2 of ${kernels().length} are compiled`);
      expect(listed()).toEqual(kernels().filter(({ name }) => name === "swiglu_forward") as Entry[]);
    });

    test("of a part lists all rows, so that nothing is chosen otherwise, and the next one completes it", async () => {
      const facts = ({ name, kinds, arch, dtype, constants, launch, source_sha256 }: Manifest["kernels"][number]) => ({
        ...{ name, kinds, arch, dtype, constants, launch, source_sha256 },
      });
      expect(rows().map(facts)).toEqual(kernels().map(facts));
      const verified = await compile("--verify");
      expect([verified.code, verified.out]).toEqual([
        1,
        expect.stringMatching(/^kernels: stale or missing: (?!swiglu_forward)/),
      ]);
      const hashes = kernels().filter(({ name }) => name.startsWith("swiglu"));
      const child = Bun.spawn([PYTHON, "-B", join(copy, "triton/compile.py"), "--these"], {
        stdin: new Blob([hashes.map((row) => `${row.source_sha256} and its title\n`).join("")]),
        stdout: "pipe",
        stderr: "pipe",
      });
      expect([await child.exited, await child.stderr.text()]).toEqual([0, expect.stringMatching(/^kernels: 2 of 2, \d+ s\n$/)]);
      expect(listed()).toEqual(hashes);
    });

    test("makes nothing twice", async () => {
      const times = () => listed().map(({ ptx }) => statSync(join(copy, "build", ptx)).mtimeMs);
      const before = times();
      expect((await only()).err).toBe("");
      expect(times()).toEqual(before);
    });

    test("concurrently with another of the same folder does the work once", async () => {
      rmSync(join(copy, "build"), { recursive: true });
      const both = await Promise.all([only(), only()]);
      expect(both.map(({ code }) => code)).toEqual([0, 0]);
      expect(both.map(({ err }) => err === "").sort()).toEqual([false, true]);
      expect(listed()).toHaveLength(2);
    });

    test("takes the place of damaged files and removes what no row has made", async () => {
      const before = files();
      const [first] = listed();
      writeFileSync(join(copy, "build", first!.ptx), "half of");
      writeFileSync(join(copy, "build/sm_80/.making-x"), "left by a killed build");
      expect((await only()).code).toBe(0);
      expect(files()).toEqual(before);
      expect(sha256(readFileSync(join(copy, "build", first!.ptx)))).toBe(first!.ptx_sha256);
    });

    test("that fails says which kernel and why, and leaves the last manifest with its files", async () => {
      const source = join(copy, "triton/swiglu.py");
      const [text, before] = [readFileSync(source, "utf8"), listed()];
      writeFileSync(source, text.replace("swiglu_of(gate, up).to(h", "nothing(gate, up).to(h"));
      const { err, code } = await only();
      expect(code).toBe(1);
      expect(err).toMatch(/kernels: swiglu_forward \w+ sm_80 BLOCK=1024\n[\s\S]*nothing is not defined/);
      expect(listed()).toEqual(before);
      for (const { ptx } of before) expect(existsSync(join(copy, "build", ptx))).toBe(true);
      writeFileSync(source, text);
    });

    test("of a changed source replaces its kernels", async () => {
      const source = join(copy, "triton/swiglu.py");
      const before = listed();
      writeFileSync(source, readFileSync(source, "utf8").replace("gate * tl.sigmoid(gate)", "2.0 * gate * tl.sigmoid(gate)"));
      expect((await only()).code).toBe(0);
      for (const { ptx } of before) expect(existsSync(join(copy, "build", ptx))).toBe(false);
      expect(listed().map(({ ptx_sha256 }) => ptx_sha256)).not.toEqual(before.map(({ ptx_sha256 }) => ptx_sha256));
    });

    test("of a row that does not fit its kernel is refused", async () => {
      const table = join(copy, "triton/variants.py");
      const text = readFileSync(table, "utf8");
      const reversed = "[dict(row, signature=dict(reversed(row['signature'].items()))) for row in rows()]";
      writeFileSync(table, `${text}\n\nrows = variants\n\n\ndef variants():\n    return ${reversed}\n`);
      const { err, code } = await only();
      expect([code, err.includes("the kernel takes ['gate_up', 'h', 'I', 'BLOCK']; its row has")]).toEqual([1, true]);
      writeFileSync(table, text);
    });

    test("of a kernel that there is not is refused", async () => {
      expect(await compile("--only", "swiglu")).toEqual({ out: "", err: "kernels: no kernel is called swiglu\n", code: 1 });
    });
  });
});

/** [offset, bytes] of each parameter as a launcher lays them out: a descriptor is a map, then a shape, then strides. */
function promised({ params, hidden }: Entry): [number, number][] {
  const sizes = params.flatMap((param) => {
    if (param.type !== "desc") return param.type === "i32" || param.type === "f32" ? [4] : [8];
    return [128, ...param.block.map(() => 4), ...param.block.map(() => 8)];
  });
  return offsets([...sizes, ...hidden.map(() => 8)].map((bytes) => [bytes, Math.min(bytes, 64)]));
}

/** The same as a PTX entry declares it. */
function declared(ptx: string, entry: string): [number, number][] {
  const begin = ptx.indexOf(`.entry ${entry}(`);
  const lines = ptx
    .slice(begin, ptx.indexOf("{", begin))
    .matchAll(/\.param (?:\.align (\d+) )?\.[a-z](\d+) .*?(?:\[(\d+)\])?,?\n/g);
  return offsets(
    [...lines].map(([, align, bits, count]) => [(Number(bits) / 8) * Number(count ?? 1), Number(align ?? Number(bits) / 8)]),
  );
}

function offsets(parts: readonly (readonly [bytes: number, alignment: number])[]): [number, number][] {
  let at = 0;
  return parts.map(([bytes, alignment]) => {
    const begin = alignUp(at, alignment);
    at = begin + bytes;
    return [begin, bytes];
  });
}

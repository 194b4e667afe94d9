// Exports by threads: the same files as without, no more at once than there are threads, and what they fail with arrives.

import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { exportedFactors, exportPeft, type PeftExport, verifyPeft } from "../../src/files/peftexport.ts";
import { layoutAdapter } from "../../src/methods/layout.ts";
import { FileThreads } from "../../src/session/file-threads.ts";
import { LINEARS, tinySpec } from "../helpers/tiny.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-export-"));
afterAll(() => rmSync(root, { recursive: true }));

const spec = tinySpec();
/** On two stages. */
function made(seed: number): PeftExport {
  const peft = { rank: 5, alpha: 10, scale: 2, targets: LINEARS, dropout: 0, rslora: false, baseModel: "m" };
  const random = new Rng(seed);
  const stages = [0, 1].map((from) => {
    const layerRange = { from, to: from + 1 };
    const layout = layoutAdapter(spec, layerRange, peft);
    const params = new Float32Array(layout.size);
    for (const { offset, rows, columns } of layout.tensors)
      for (let i = 0; i < rows * columns; i++) params[offset + i] = random.normal();
    return { layerRange, params };
  });
  return { name: `a${seed}`, spec, peft, stages };
}
const large = (folder: string) => ({ folder, isSmall: false });
const job = (folder: string, adapter: PeftExport) => ({
  work: { kind: "export" as const, folder, adapter },
  owned: adapter.stages.map(({ params }) => params.buffer as ArrayBuffer),
});
const filesOf = (folder: string) =>
  ["adapter_model.safetensors", "adapter_config.json"].map((name) => readFileSync(join(folder, name)).toString("base64"));

test("six by two threads are what they are without threads, and no third is read before one is done", async () => {
  await using threads = new FileThreads({ large: 2, small: 4 });
  let begun = 0;
  const written = () => range(6).filter((i) => existsSync(join(root, `by-thread-${i}`, "adapter_config.json"))).length;
  const done = range(6).map(async (i) => {
    const folder = join(root, `by-thread-${i}`);
    await threads.run(large(folder), async () => {
      expect(++begun - written()).toBeLessThanOrEqual(2);
      await Bun.sleep(1);
      return job(folder, made(i));
    });
    exportPeft(join(root, `plain-${i}`), made(i));
    expect(filesOf(folder)).toEqual(filesOf(join(root, `plain-${i}`)));
  });
  await Promise.all(done);
  expect(written()).toBe(6);
});

test("small ones have more threads, large ones no more; those of one folder are written one after the other, in their order", async () => {
  await using threads = new FileThreads({ large: 1, small: 4 });
  const under = new Map<string, boolean>();
  const begun: string[] = [];
  let [most, mostLarge] = [0, 0];
  const folders = range(24).map((i) => ({ folder: join(root, `mixed-${(i * 7) % 5}`), isSmall: i % 3 !== 0, name: `${i}` }));
  await Promise.all(
    folders.map(async ({ folder, isSmall, name }, i) => {
      const work = threads.run({ folder, isSmall }, async () => {
        begun.push(name);
        await Bun.sleep(1); // the one before it has left by now
        expect(under.has(folder), name).toBe(false);
        under.set(folder, isSmall);
        most = Math.max(most, under.size);
        mostLarge = Math.max(mostLarge, [...under.values()].filter((is) => !is).length);
        return job(folder, made(i));
      });
      await work.then(() => under.delete(folder));
    }),
  );
  expect([most, mostLarge]).toEqual([4, 1]);
  for (const { folder } of folders.slice(0, 5)) {
    const of = folders.filter((other) => other.folder === folder).map(({ name }) => name);
    expect(begun.filter((name) => of.includes(name))).toEqual(of);
    exportPeft(`${folder}-last`, made(Number(of.at(-1))));
    expect(filesOf(folder)).toEqual(filesOf(`${folder}-last`));
  }
});

test("one that fails is reported by its code, and the next is written by the same thread", async () => {
  await using threads = new FileThreads({ large: 1, small: 1 });
  const bad = made(7);
  bad.stages[1]!.params[3] = Number.NaN;
  await expect(threads.run(large(join(root, "bad")), () => job(join(root, "bad"), bad))).rejects.toMatchObject({
    code: "peft.values",
  });
  const file = join(root, "file");
  writeFileSync(file, "");
  await expect(threads.run(large(join(file, "below")), () => job(join(file, "below"), made(8)))).rejects.toMatchObject({
    code: "files.write",
  });
  await threads.run(large(join(root, "good")), () => job(join(root, "good"), made(8)));
  expect(filesOf(join(root, "good")).length).toBe(2);
  await threads.close();
  await expect(threads.run(large(join(root, "late")), () => job(join(root, "late"), made(8)))).rejects.toMatchObject({
    code: "files.closed",
  });
});

test("a folder that holds one other bit, or another scale, is not the adapter", () => {
  const folder = join(root, "flipped");
  const adapter = made(9);
  exportPeft(folder, adapter);
  const factors = exportedFactors(adapter);
  verifyPeft(folder, adapter, factors);
  const scaled = { ...adapter, peft: { ...adapter.peft, scale: 3 } };
  expect(() => verifyPeft(folder, scaled, factors)).toThrow("is not what was trained");
  const path = join(folder, "adapter_model.safetensors");
  const whole = readFileSync(path);
  const header = 8 + Number(whole.readBigUInt64LE(0));
  for (const at of [header, header + 4099, whole.length - 1]) {
    const bytes = Buffer.from(whole);
    bytes[at]! ^= 4;
    writeFileSync(path, bytes);
    expect(() => verifyPeft(folder, adapter, factors)).toThrow("is not what was trained");
  }
  writeFileSync(path, whole);
  verifyPeft(folder, adapter, factors);
  const last = factors.at(-1)!;
  const other = factors.with(-1, { ...last, values: last.values.with(0, last.values[0]! + 1) });
  expect(() => verifyPeft(folder, adapter, other)).toThrow("is not what was trained");
});

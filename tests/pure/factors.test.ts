// Values of adapters in native code: the numbers that plain loops give, whatever the size and the number of threads.

import { expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { hash, Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { areFinite, sameBits, toBf16 } from "../../src/files/convert.ts";
import { fillNormal, fillUniform, hasBytes, putFactor, takeFactor } from "../../src/files/factors.ts";

const WORDS = [9, 3, 2, 0x10a];
const SIZES = [0, 1, 17, 65_536, 200_001];

test("random values are the numbers of the stream, bit for bit", () => {
  for (const size of SIZES) {
    const [first, second] = [new Rng(...WORDS), new Rng(...WORDS)];
    const uniform = Float32Array.from({ length: size }, () => (2 * first.uniform() - 1) * 0.173);
    const normal = Float32Array.from({ length: size }, () => second.normal() / 24);
    const values = new Float32Array(size);
    fillUniform(values, hash(...WORDS), 0.173);
    expect(sameBits(values, uniform)).toBe(true);
    fillNormal(values, hash(...WORDS), 24);
    expect(sameBits(values, normal)).toBe(true);
  }
});

test("factors of any shape are taken out and put in, turned where the block has them so", () => {
  for (const [rows, columns] of [
    ...[[1, 1] as const, [3, 5] as const, [16, 16] as const],
    ...[[130, 7] as const, [33, 4100] as const, [4100, 33] as const],
  ])
    for (const make of [(n: number) => new Float32Array(n), (n: number) => new Uint8Array(n)])
      for (const isTransposed of [false, true]) {
        const offset = 11;
        const values = make(rows * columns).map((_, i) => (i * 7919) % 251);
        const block = make(rows * columns + 2 * offset);
        putFactor(block, { offset, rows, columns, isTransposed }, values);
        const at = (row: number, column: number) => (isTransposed ? column * rows + row : row * columns + column);
        const wrong = values.findIndex((value, i) => block[offset + at(Math.floor(i / columns), i % columns)] !== value);
        expect(wrong).toBe(-1);
        const outside = [...block.subarray(0, offset), ...block.subarray(offset + rows * columns)];
        expect(outside.every((value) => value === 0)).toBe(true);
        expect(takeFactor(block, { offset, rows, columns, isTransposed })).toEqual(values);
      }
});

test("bf16 is the nearest, to even at half the way; NaN and infinities are found and kept", () => {
  const plain = (value: number): number => {
    const [bits] = new Uint32Array(Float32Array.of(value).buffer) as unknown as [number];
    return Number.isNaN(value) ? (bits >>> 16) | 0x40 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
  };
  for (const size of SIZES) {
    const random = new Rng(size);
    const values = Float32Array.from({ length: size }, () => random.normal() * 10 ** (60 * random.uniform() - 30));
    expect([...toBf16(values)]).toEqual([...values].map(plain));
    expect(areFinite(values)).toBe(true);
    if (size === 0) continue;
    for (const odd of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const at = random.below(size);
      const other = values.with(at, odd);
      expect(areFinite(other)).toBe(false);
      expect(toBf16(other)[at]).toBe(plain(odd));
    }
  }
  const halves = Float32Array.from(range(64), (i) => 1 + i / 256);
  expect([...toBf16(halves)]).toEqual([...halves].map(plain));
});

test("a file has bytes at a place or has not, and one that cannot be read is an error with its code", () => {
  const folder = mkdtempSync(join(tmpdir(), "mlora-bytes-"));
  const bytes = Uint8Array.from({ length: 3_000_001 }, (_, i) => (i * 7919) >> 3);
  writeFileSync(join(folder, "file"), bytes);
  const [file, directory] = [openSync(join(folder, "file"), "r"), openSync(folder, "r")];
  try {
    expect(hasBytes(file, 0, bytes)).toBe(true);
    expect(hasBytes(file, 17, bytes.subarray(17, 2_000_000))).toBe(true);
    expect(hasBytes(file, 1, bytes.slice(1, 100))).toBe(true);
    expect(hasBytes(file, 1, bytes)).toBe(false); // it ends before
    for (const at of [0, 1_500_000, 3_000_000]) expect(hasBytes(file, 0, bytes.with(at, bytes[at]! ^ 1))).toBe(false);
    expect(() => hasBytes(directory, 0, bytes)).toThrow(expect.objectContaining({ code: "EISDIR" }));
  } finally {
    for (const fd of [file, directory]) closeSync(fd);
    rmSync(folder, { recursive: true });
  }
});

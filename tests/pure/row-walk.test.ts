// What is counted and hashed of all rows at once is what their samples say one by one.

import { expect, test } from "bun:test";
import { Rng } from "../../src/base/rng.ts";
import { range } from "../../src/base/shape.ts";
import { countRows } from "../../src/data/row-counts.ts";
import { digestOf } from "../../src/data/row-digest.ts";
import { chosenOf, joined, RowPacker, type Sample } from "../../src/data/rows.ts";
import { walkSources } from "../../src/data/walk.ts";
import { sequencesOf } from "../../src/schedule/pack.ts";

type Form = "single" | "paired" | "labelled" | "prompt";

function packedRows(rng: Rng, form: Form, file: string, most: number): readonly Sample[] {
  const packer = new RowPacker(file);
  const sequence = () => {
    const length = 2 + rng.below(most);
    return {
      ids: Int32Array.from(range(length), () => rng.below(1 << 17)),
      mask: Uint8Array.from(range(length), () => rng.below(2)),
    };
  };
  const rows = 1 + rng.below(60);
  let line = 1;
  for (let i = 0; i < rows; i++) {
    line += rng.below(3);
    packer.push({
      ...sequence(),
      ...(form === "paired" || form === "labelled" ? { other: sequence() } : {}),
      ...(form === "labelled" ? { label: rng.below(2) === 1 } : {}),
      ...(form === "prompt" ? { columns: `{"é": ${rng.below(100)}}` } : {}),
      source: { file, line },
    });
  }
  return packer.rows;
}

/** As a run has always hashed them. */
function plainDigest(lists: readonly (readonly Sample[])[]): string {
  const hasher = new Bun.CryptoHasher("sha256");
  for (const rows of lists) {
    hasher.update(`${rows.length};`);
    for (const row of rows) {
      for (const { ids, mask } of sequencesOf(row)) hasher.update(`${ids.length};`).update(ids).update(mask);
      if (row.label !== undefined) hasher.update(`${row.label};`);
      if (row.columns !== undefined) hasher.update(`${row.columns};`);
    }
  }
  return hasher.digest("hex");
}

function counted(rows: readonly Sample[], follow: number) {
  const counts = countRows(rows, follow);
  for (;;) {
    const { done, value } = counts.next();
    if (done) return value;
  }
}

test.each(["single", "paired", "labelled", "prompt"] as const)("rows of form %s", (form) => {
  for (const seed of range(40)) {
    const rng = new Rng(seed, 0x3a1c);
    const files = range(1 + rng.below(3)).map((i) => packedRows(rng, form, `f${i}`, seed % 8 === 0 ? 9000 : 20));
    const all = joined(files);
    const held = rng.below(2) === 0;
    const chosen = new Set(range(all.length).filter(() => rng.below(3) > 0));
    const [train, eval_] = held
      ? [chosenOf(all, (row) => chosen.has(row)), chosenOf(all, (row) => !chosen.has(row))]
      : [all, []];
    const plain = [...train].map((row) => ({ ...row })); // objects, as a program's own rows are
    for (const lists of [
      [train, eval_],
      [plain, [...eval_]],
    ])
      expect([seed, digestOf(lists)]).toEqual([seed, plainDigest([train, eval_])]);
    const follow = form === "prompt" ? rng.below(9) : 0;
    const fed = [...train].map((row) => sequencesOf(row).map(({ ids }) => ids.length - 1));
    for (const rows of [train, plain]) {
      const { lengths, longest, targets } = counted(rows, follow);
      expect([...lengths]).toEqual(fed.map((of) => of.reduce((a, b) => a + b) + follow));
      expect([...longest]).toEqual(fed.map((of) => Math.max(...of) + follow));
      const targetsOf = ({ mask }: { readonly mask: Uint8Array }) => mask.subarray(1).reduce((a, b) => a + b, 0);
      expect([...targets]).toEqual(
        [...train].map(
          (row) =>
            sequencesOf(row)
              .map(targetsOf)
              .reduce((a, b) => a + b) + follow,
        ),
      );
      const found: unknown[] = [];
      walkSources(rows, (file, line, row) => void found.push([{ file, line }, row]));
      expect(found).toEqual([...train].map(({ source }, row) => [source, row]));
    }
  }
});

test("a row longer than what is hashed at once", () => {
  const length = 700_000;
  const ids = Int32Array.from(range(length), (i) => i);
  const row: Sample = { ids, mask: new Uint8Array(length).fill(1), source: { file: "f", line: 1 } };
  const packer = new RowPacker("f");
  for (const one of [row, { ...row, ids: ids.subarray(0, 3), mask: row.mask.subarray(0, 3) }, row]) packer.push(one);
  expect(digestOf([packer.rows])).toBe(plainDigest([packer.rows]));
});

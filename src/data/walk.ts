// All rows at once, for what is counted or hashed of millions of them: no object is made of a row.

import { type PackedFile, type PackedRows, packedOf, type Sample, type Sequence, sampleOf, UNLABELLED } from "./rows.ts";

/** Where a sequence lies: `part` is 0 for a row's own and 1 for its other. The arrays hold those of other rows, too. */
export type Visit = (ids: Int32Array, mask: Uint8Array, at: number, length: number, row: number, part: 0 | 1) => void;

export type Walked = Sequence & Pick<Sample, "other">;

/** Visits the sequences of rows `from` to `to`, in order. */
export function walk(rows: readonly Walked[], visit: Visit, from = 0, to = rows.length): void {
  const packed = packedOf(rows);
  if (packed) eachRow(packed, (of, number, row) => visitRow(of, number, visit, row), from, to);
  else for (let row = from; row < to; row++) visitSample(rows[row]!, visit, row);
}

/** Whether it is known that no row has a label or columns. */
export function isOfTokensAlone(rows: readonly Walked[]): boolean {
  const packed = packedOf(rows);
  return (
    packed?.files.every(
      ({ labels, columns, unread }) => !unread && columns === undefined && labels.every((of) => of === UNLABELLED),
    ) ?? false
  );
}

/** Visits where the rows come from, in order. */
export function walkSources(
  rows: readonly Pick<Sample, "source">[],
  visit: (file: string, line: number, row: number) => void,
): void {
  const packed = packedOf(rows);
  if (!packed) for (const [row, { source }] of rows.entries()) visit(source.file, source.line, row);
  else eachRow(packed, (of, number, row) => visit(of.file, of.lines[number]!, row), 0, rows.length);
}

function eachRow(
  { files, chosen }: PackedRows,
  visit: (of: PackedFile, number: number, row: number) => void,
  from: number,
  to: number,
): void {
  let [at, start] = [0, 0]; // the file that a row lies in, and its first row
  for (let row = from; row < to; row++) {
    const number = chosen ? chosen[row]! : row;
    while (number >= start + files[at]!.lines.length) start += files[at++]!.lines.length; // rows are chosen in order
    visit(files[at]!, number - start, row);
  }
}

function visitSample({ ids, mask, other }: Walked, visit: Visit, row: number): void {
  visit(ids, mask, 0, ids.length, row, 0);
  if (other) visit(other.ids, other.mask, 0, other.ids.length, row, 1);
}

function visitRow(of: PackedFile, number: number, visit: Visit, row: number): void {
  const { paired, pieces, index } = of;
  if (of.unread) {
    visitSample(sampleOf(of, number), visit, row);
    return;
  }
  const count = paired ? 2 : 1;
  for (let part = 0; part < count; part++) {
    const at = 3 * (count * number + part);
    const { ids, mask } = pieces[index[at]!]!;
    visit(ids, mask, index[at + 1]!, index[at + 2]!, row, part as 0 | 1);
  }
}

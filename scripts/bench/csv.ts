// Lines of CSV: a cell is one line of text, in quotes where it has a comma or a quote.

const quoted = (value: string): string => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

/** A line break in a cell would end the row. */
const oneLine = (value: string): string => value.replaceAll(/\s+/g, " ");

/** What is null or undefined is an empty cell. */
export const csvLine = (cells: readonly unknown[]): string => cells.map((cell) => quoted(oneLine(`${cell ?? ""}`))).join(",");

const csvCells = (line: string): string[] =>
  [...`${line},`.matchAll(/("(?:[^"]|"")*"|[^",]*),/g)].map(([, cell = ""]) =>
    cell.replace(/^"([\s\S]*)"$/, (_, inner: string) => inner.replaceAll('""', '"')),
  );

/**
 * Rows of a file whose first line names the columns, those in `numbers` as numbers, null where they are empty. Throws an Error
 * that names the line.
 */
export function csvRows<Row>(text: string, columns: readonly string[], numbers: readonly string[]): Row[] {
  const [head, ...lines] = text.trimEnd().split("\n");
  const wanted = columns.join(",");
  if (head !== wanted) throw new Error(`line 1: expected ${wanted}, found ${head}`);
  return lines.map((line, i) => {
    const cells = csvCells(line);
    const fields = columns.map((column, j) => {
      const value = cells[j];
      if (value === undefined) throw new Error(`line ${i + 2}: expected ${columns.length} cells, found ${j}`);
      if (!numbers.includes(column)) return [column, value];
      const number = value === "" ? null : Number(value);
      if (Number.isNaN(number)) throw new Error(`line ${i + 2}: expected a number in ${column}, found '${value}'`);
      return [column, number];
    });
    return Object.fromEntries(fields) as Row;
  });
}

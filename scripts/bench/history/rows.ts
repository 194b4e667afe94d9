// Rows of docs/measurements/history.csv: what one `mlora bench` came to, and how two of them differ.

export type Row = {
  readonly date: string; // UTC
  readonly commit: string;
  readonly machine: string;
  readonly shape: string;
  readonly settings: string;
  readonly rounds: number;
  readonly tokens_per_s: number; // median of the rounds
  readonly range: string;
  readonly device_mib: number;
  readonly rss_mib: number;
  /** The build that took turns with it in the same call, or empty, and this build's speed divided by that one's. */
  readonly against: string;
  readonly ratio: number | null;
};

const COLUMNS = ["date", "commit", "machine", "shape", "settings", "rounds", "tokens_per_s", "range"] as const;
const MORE = ["device_mib", "rss_mib", "against", "ratio"] as const;
export const HEAD: string = [...COLUMNS, ...MORE].join(",");
const NUMBERS: readonly string[] = ["rounds", "tokens_per_s", "device_mib", "rss_mib", "ratio"];

const quoted = (value: string): string => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export const formatRow = (row: Row): string => [...COLUMNS, ...MORE].map((column) => quoted(`${row[column] ?? ""}`)).join(",");

/** The rows of a file. Throws an Error that names the line. */
export function parseRows(text: string): Row[] {
  const [head, ...lines] = text.trimEnd().split("\n");
  if (head !== HEAD) throw new Error(`line 1: expected ${HEAD}, found ${head}`);
  return lines.map((line, i) => {
    const cells = [...`${line},`.matchAll(/("(?:[^"]|"")*"|[^",]*),/g)].map(([, cell = ""]) => cell);
    const fields = [...COLUMNS, ...MORE].map((column, j) => {
      const value = cells[j]?.replace(/^"([\s\S]*)"$/, (_, inner: string) => inner.replaceAll('""', '"'));
      if (value === undefined) throw new Error(`line ${i + 2}: expected ${COLUMNS.length + MORE.length} cells, found ${j}`);
      if (!NUMBERS.includes(column)) return [column, value];
      const number = value === "" ? null : Number(value);
      if (Number.isNaN(number)) throw new Error(`line ${i + 2}: expected a number in ${column}, found '${value}'`);
      return [column, number];
    });
    return Object.fromEntries(fields) as Row;
  });
}

/** Rows that may be compared with each other have the same key. */
export const keyOf = ({ machine, shape, settings }: Row): string => [machine, shape, settings].join("\n");

export type Change = {
  readonly now: Row;
  readonly before: Row | null;
  /** Relative: 0.1 is a tenth more. Null without a row before; speed is that of the same call, where it has one. */
  readonly speed: number | null;
  readonly memory: number | null;
};

/** The newest row of each key against the one before it. */
export function changes(rows: readonly Row[]): Change[] {
  return [...Map.groupBy(rows, keyOf).values()].map((of) => {
    const now = of.at(-1)!;
    const before = of.at(-2) ?? null;
    const grown = before && Math.max(now.device_mib / before.device_mib, now.rss_mib / before.rss_mib) - 1;
    const speed = now.ratio !== null ? now.ratio - 1 : before && now.tokens_per_s / before.tokens_per_s - 1;
    return { now, before, speed, memory: grown };
  });
}

/** Why a change is not accepted, or null. */
export function refusal({ speed, memory }: Change, tolerance: number): string | null {
  if (speed !== null && speed < -tolerance) return `slower by ${percent(-speed)}, ${percent(tolerance)} allowed`;
  if (memory !== null && memory > tolerance) return `more memory by ${percent(memory)}, ${percent(tolerance)} allowed`;
  return null;
}

export const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

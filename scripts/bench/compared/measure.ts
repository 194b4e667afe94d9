// Runs what measures a case, each command in a process of its own that ends in time. A program that cannot run says why, and
// the others are measured all the same.

import { range } from "../../../src/base/shape.ts";
import { type Case, commandOf, PROGRAMS, type Program, type Tools } from "./cases.ts";
import { type Result, type Row, resultOf, rowOf } from "./results.ts";

export type Options = {
  readonly tools: Tools;
  readonly programs: readonly Program[];
  readonly rounds: number;
  /** Seconds that one measurement may take. */
  readonly limit: number;
  /** Of a program's process, next to this one's environment. */
  readonly environment: (program: Program) => Readonly<Record<string, string>>;
  /** Why a program cannot be measured at all; null where nothing is known against it. */
  readonly hindered: (program: Program) => string | null;
  readonly versions: Partial<Readonly<Record<Program, string>>>;
  readonly about: Pick<Row, "date" | "commit">;
  /** Of this machine, where no report says it: the case's device. */
  readonly machine: (on: Case["on"]) => string;
  readonly say: (line: string) => void;
};

/** The last lines that are not empty: what a program says when it fails. */
const lastLines = (text: string): string =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "")
    .slice(-2)
    .join(" | ");

/** Runs a command, and ends it with all that it has started where it takes longer than `limit` seconds. */
export async function resultOfCommand(
  of: Case,
  command: readonly string[],
  limit: number,
  environment: Readonly<Record<string, string>>,
): Promise<Result> {
  const limited = ["timeout", "--kill-after=5", `${limit}`, ...command];
  const child = Bun.spawn(limited, {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...environment },
  });
  const [out, err, code] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  if (code === 124 || code === 137) return { error: `it took longer than ${limit} s` };
  const result = resultOf(of, out);
  if (code === 0 || ("error" in result && !result.error.startsWith("its last line"))) return result;
  return { error: `it ended with ${code}: ${lastLines(err) || lastLines(out)}` };
}

/** A program that has a case, and what came of it. */
export type Having = { readonly program: Program; readonly command: readonly string[]; readonly results: Result[] };

export const havingOf = (of: Case, { tools, programs }: Pick<Options, "tools" | "programs">): Having[] =>
  PROGRAMS.filter((program) => programs.includes(program)).flatMap((program) => {
    const command = commandOf(of, program, tools);
    return command ? [{ program, command, results: [] }] : [];
  });

export const said = (of: Case, program: Program, found: Result): string =>
  `${of.name}, ${program}: ${"error" in found ? `fails: ${found.error}` : `${found.value} ${of.unit}`}`;

/** A row of each program. */
export function rowsOf(of: Case, having: readonly Having[], { machine, versions, about }: Options): Row[] {
  const devices = having.flatMap(({ results }) =>
    results.flatMap((result) => ("error" in result ? [] : (result.device ?? []))),
  );
  const where = devices[0] ?? machine(of.on);
  return having.map(({ program, results }) =>
    rowOf(of, program, results, { ...about, machine: where, version: versions[program] ?? "" }),
  );
}

/** Measures a case by all programs in turn, in another order each round, and gives a row for each. */
export async function measureCase(of: Case, options: Options): Promise<Row[]> {
  const { rounds, limit, environment, hindered, say } = options;
  const having = havingOf(of, options);
  for (const round of range(rounds))
    for (const i of having.keys()) {
      const { program, command, results } = having[(i + round) % having.length]!;
      const before = results.at(-1);
      if (before && "error" in before) continue; // it would fail again
      const why = hindered(program);
      results.push(why === null ? await resultOfCommand(of, command, limit, environment(program)) : { error: why });
      say(said(of, program, results.at(-1)!));
    }
  return rowsOf(of, having, options);
}

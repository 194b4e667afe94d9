// A small run in which one file call fails, is done by half, is late, or is the last (faults.c), or in which no folder can be
// synced; and what has to hold after it: the same command comes to the bytes of an undisturbed run, or says why not, and
// nothing outside the run's folder has changed.

import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Ended, leftOf, SUMS, unlike, type Workplace } from "./program.ts";

export const KINDS = ["ENOSPC", "EIO", "EMFILE", "EDQUOT", "EINTR", "EROFS", "short", "delay", "kill"] as const;
export type FaultKind = (typeof KINDS)[number];
/** `below`: counts only calls on paths that begin so, in the run's folder. */
export type Fault = { readonly number: number; readonly kind: FaultKind | "none" | "unsynced"; readonly below?: string };

const NAMES = ["a0", "a2"];
const RECIPE = unlike([0, 2], "cpu", "checkpoint = { steps = 2 }").replaceAll(/^steps = \d+$/gm, "steps = 5");

function compile(to: string): boolean {
  const source = join(import.meta.dir, "faults.c");
  const gcc = Bun.which("gcc");
  return gcc !== null && Bun.spawnSync([gcc, "-O1", "-o", to, source]).exitCode === 0;
}

/** Whether this machine can do it at all. */
export function canInject(): boolean {
  const folder = mkdtempSync(join(tmpdir(), "mlora-faults-"));
  try {
    const [program, report] = [join(folder, "faults"), join(folder, "report")];
    return compile(program) && Bun.spawnSync([program, folder, "0", "none", report, "--", "true"]).exitCode === 0;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * What came of a fault: which call it was ("EIO fsync /..."; empty where there was none of its number), and how both runs
 * ended.
 */
export type Came = { readonly call: string; readonly calls: number; readonly first: Ended; readonly second: Ended };

export class Injector {
  readonly #program: string;
  #calm: readonly unknown[] | null = null;

  constructor(private readonly place: Workplace) {
    this.#program = join(place.root, "faults");
    if (!compile(this.#program)) throw new Error("gcc is needed");
  }

  /** A project with a folder of the user's next to the run's, to which a link in the run's leads. */
  #project(): string {
    const path = this.place.project(RECIPE, SUMS);
    const [folder, mine] = [join(path, ".."), join(path, "..", "mine")];
    mkdirSync(join(mine, "step-000000007.part"), { recursive: true });
    for (const name of ["run.json.12.tmp", "step-000000007.part/thesis.txt"]) writeFileSync(join(mine, name), "mine");
    mkdirSync(join(folder, "out"));
    return path;
  }

  /** How many file calls an undisturbed run makes. */
  async calls(): Promise<number> {
    const path = this.#project();
    const { calls, first } = await this.#injected(path, { number: 0, kind: "none" });
    if (first.code !== 0) throw new Error(first.err);
    this.#calm = this.#left(path);
    return calls;
  }

  /** Has a fault happen and resumes after it. Throws an Error that says what is not as it has to be. */
  async come(fault: Fault): Promise<Came> {
    const path = this.#project();
    const before = this.#outside(path);
    const { first, call, calls } = await this.#injected(path, fault);
    const fail = (what: string, { code, err }: Ended): never => {
      throw new Error(`${fault.number} ${call}: ${what}; exit code ${code}\n${err.slice(-1500)}`);
    };
    const told = first.code === 0 || first.code === 137 || /^error\[[a-z.]+\]: /m.test(first.err);
    if (!told || first.err.includes("bug in mlora")) fail("it did not say what went wrong", first);
    const folder = join(path, "..", "out");
    if (existsSync(join(folder, ".mlora-run.json"))) symlinkSync(join("..", "mine"), join(folder, "link"));
    const second = await this.place.mlora("run", path);
    const finished = second.code === 2 && second.err.includes("error[resume.finished]");
    if (second.code !== 0 && !finished) fail("the same command does not go on", second);
    const left = this.#left(path);
    if (!Bun.deepEquals(left, this.#calm)) fail("what was trained is not what an undisturbed run trains", second);
    if (!Bun.deepEquals(this.#outside(path), before)) fail("something outside the run's folder has changed", second);
    const half = readdirSync(folder, { recursive: true }).map(String);
    const halves = half.filter((name) => /\.(tmp|part)$/.test(name) && !name.startsWith("link"));
    if (second.code === 0 && halves.length > 0) fail(`left half written: ${halves}`, second);
    rmSync(join(path, ".."), { recursive: true });
    return { call, calls, first, second };
  }

  async #injected(path: string, { number, kind, below = "" }: Fault): Promise<Omit<Came, "second">> {
    const report = join(path, "..", "report");
    const prefix = [this.#program, join(path, "..", "out", below), `${number}`, kind, report, "--"];
    const first = await this.place.start(["run", path], {}, prefix).ended;
    const [calls = "", call = ""] = readFileSync(report, "utf8").split("\n");
    rmSync(report);
    return { first, call, calls: Number(calls) };
  }

  #left(path: string): readonly unknown[] {
    return NAMES.map((name) => leftOf(join(path, "..", "out"), name));
  }

  /** Everything in the project but the run's folder. */
  #outside(path: string): readonly (readonly [string, string])[] {
    const folder = join(path, "..");
    return readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((file) => file.isFile() && !file.parentPath.startsWith(join(folder, "out")))
      .map((file) => join(file.parentPath, file.name))
      .sort()
      .map((file) => [file, readFileSync(file, "utf8")] as const);
  }
}

// A small run whose processes are killed at seeded moments, while adapters are kept and exported, join and are forked; and what
// has to hold after it: the same command comes to the bytes of undisturbed runs, on whatever number of stages each of its parts
// was trained.

import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Rng } from "../../src/base/rng.ts";
import {
  childrenOf,
  commandOf,
  type Ended,
  type Left,
  leftOf,
  longer,
  type Running,
  SUMS,
  unlike,
  type Workplace,
} from "./program.ts";

const [OWN, LATE] = [[0, 1, 3], 2];
const TWIN = "twin";
const KEPT = "checkpoint = { steps = 3 }\nrestarts = 1000";
/** With room for more than its own, and without: then the stages are opened again when one joins. */
const RUNS = [`${KEPT}\nslots = 6`, KEPT].map((more) => longer(unlike(OWN, "cpu", more), 4));
const COMES = longer(unlike([LATE], "cpu"), 2);
const MOST_STAGES = 3;
const LIMIT_MS = 240_000;

/**
 * When a process is killed. `beginning`: soon after the start. The others: when something of the kind is seen in the run's
 * folder.
 */
export const MOMENTS = ["beginning", "step", "checkpoint", "export", "request"] as const;
type Moment = (typeof MOMENTS)[number];
const VICTIMS = ["coordinator", "stage", "server"] as const;
type Victim = (typeof VICTIMS)[number];
/** What was killed and when, and what had come to the run by its end. */
export type Came = { readonly kills: readonly `${Moment} ${Victim}`[]; readonly joined: boolean; readonly forked: boolean };

const outputOf = (path: string) => join(path, "..", "out");
const linesOf = (name: string, { steps }: Left) => ({ name, lines: steps.map(({ adapter: _, ...line }) => line) });

export class Killer {
  readonly #calm = new Map<string, Left>();
  readonly #names = OWN.map((i) => `a${i}`);

  constructor(private readonly place: Workplace) {}

  /** Learns what undisturbed runs come to. */
  async prepare(): Promise<void> {
    for (const [text, names] of [
      [RUNS[0]!, this.#names],
      [COMES, [`a${LATE}`]],
    ] as const) {
      const path = this.place.project(text, SUMS);
      const ended = await this.place.mlora("run", path);
      if (ended.code !== 0) throw new Error(ended.err);
      for (const name of names) this.#calm.set(name, leftOf(outputOf(path), name));
      rmSync(join(path, ".."), { recursive: true });
    }
  }

  /**
   * A run with that many kills, or as many as it has time for, and its end. Throws an Error that says what is not as it has to
   * be.
   */
  async come(seed: number, number: number, kills: number): Promise<Came> {
    const rng = new Rng(seed, number);
    const one = new KilledRun(this.place, rng, kills);
    const history = () => [`seed ${seed}, ${number}: ${one.kills.join(", ")}`, ...one.said].join("\n");
    try {
      await one.toItsEnd();
      const names = this.#check(one);
      rmSync(join(one.path, ".."), { recursive: true });
      return { kills: one.kills, joined: names.includes(`a${LATE}`), forked: names.includes(TWIN) };
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${history()}`);
    } finally {
      one.kill();
    }
  }

  /** Names of all adapters that there are at the end. */
  #check({ path, isAdded }: KilledRun): readonly string[] {
    const output = outputOf(path);
    const come = [`a${LATE}`, TWIN].filter(isAdded);
    const differs = (what: string, a: unknown, b: unknown) => {
      if (!Bun.deepEquals(a, b)) throw new Error(`${what}: not what an undisturbed run trains`);
    };
    for (const name of [...this.#names, ...come]) if (name !== TWIN) differs(name, leftOf(output, name), this.#calm.get(name));
    if (isAdded(TWIN)) {
      const [of, twin] = [this.#calm.get("a0")!, leftOf(output, TWIN)];
      const [{ lines }, all] = [linesOf(TWIN, twin), linesOf("a0", of).lines];
      differs(`${TWIN}'s weights`, twin.weights, of.weights);
      differs(`${TWIN}'s steps`, lines, all.slice(all.length - lines.length)); // none, where a0 had made its last
    }
    const files = readdirSync(output, { recursive: true }).map(String);
    const half = files.filter((name) => /\.(tmp|part|damaged)($|\/)|\.mlora\.lock/.test(name));
    if (half.length > 0) throw new Error(`left in the run's folder: ${half.join(", ")}`);
    return [...this.#names, ...come];
  }
}

class KilledRun {
  readonly path: string;
  readonly kills: `${Moment} ${Victim}`[] = [];
  /** How the processes that were started have ended. */
  readonly said: string[] = [];
  #run: Running | null = null;
  #last: Ended | null = null;
  #asking: Promise<void> = Promise.resolve();
  #asked = 0;
  readonly #end = performance.now() + LIMIT_MS;

  constructor(
    private readonly place: Workplace,
    private readonly rng: Rng,
    private readonly wanted: number,
  ) {
    this.path = place.project(RUNS[rng.below(RUNS.length)]!, { ...SUMS, "late.toml": COMES });
  }

  readonly isAdded = (name: string): boolean => {
    const file = join(outputOf(this.path), "added.toml");
    return existsSync(file) && readFileSync(file, "utf8").includes(`name = "${name}"`);
  };

  async toItsEnd(): Promise<void> {
    for (let i = 0; i < this.wanted && !this.#isOver; i++) await this.#killOnce();
    while (!this.#isOver) await this.#step();
    await this.#asking;
    const { code, err } = this.#last!;
    const finished = code === 2 && err.includes("error[resume.finished]");
    if (code !== 0 && !finished) throw new Error(`the same command ends with ${code}`);
  }

  kill(): void {
    this.#run?.kill("SIGKILL");
  }

  get #isOver(): boolean {
    return this.#run === null && this.#last !== null && this.#last.code !== 137;
  }

  /** Starts the run where it is not under way; a while later, has it asked what it has not been yet. */
  async #step(): Promise<void> {
    if (performance.now() > this.#end) throw new Error(`not at its end after ${LIMIT_MS} ms`);
    if (this.#run === null) {
      const stages = `${1 + this.rng.below(MOST_STAGES)}`;
      const run = this.place.start(["run", this.path, "--stages", stages]);
      this.#run = run;
      void run.ended.then((ended) => {
        this.said.push(`exit code ${ended.code}, ${stages} stages: ${ended.err.slice(-600)}`);
        this.#last = ended;
        this.#run = null;
      });
    }
    await Bun.sleep(2);
    this.#ask();
  }

  /** An adapter joins, and one is forked: when the first steps are made, and again where a kill was faster. */
  #ask(): void {
    if (this.#lines() < 4 * (1 + this.#asked) || this.#asked > 8) return;
    const requests = [
      ...(this.isAdded(`a${LATE}`) ? [] : [["add", outputOf(this.path), join(this.path, "..", "late.toml")]]),
      ...(this.isAdded(TWIN) ? [] : [["fork", outputOf(this.path), "a0", TWIN]]),
    ];
    this.#asked++;
    this.#asking = this.#asking.then(async () => {
      for (const request of requests) await this.place.mlora(...request);
    });
  }

  #lines(): number {
    const file = join(outputOf(this.path), "metrics.jsonl");
    return existsSync(file) ? readFileSync(file, "utf8").split("\n").length - 1 : 0;
  }

  async #killOnce(): Promise<void> {
    const { rng } = this;
    const moment = MOMENTS[rng.below(MOMENTS.length)]!;
    const victim = VICTIMS[[0, 0, 0, 1, 2][rng.below(5)]!]!;
    const later = rng.below({ beginning: 1500, step: 40, checkpoint: 12, export: 60, request: 400 }[moment]);
    await this.#step();
    const seen = this.#watch(moment);
    while (this.#run !== null && !seen()) await this.#step();
    for (const end = performance.now() + later; this.#run !== null && performance.now() < end; ) await this.#step();
    for (; this.#run !== null; await this.#step()) {
      const pid = this.#pidOf(victim, this.#run.pid);
      if (pid === null) continue; // it is being started
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        continue; // it has just ended
      }
      this.kills.push(`${moment} ${victim}`);
      break;
    }
    if (victim === "coordinator") while (this.#run !== null) await Bun.sleep(5);
  }

  /** A test whether something of the kind has begun since now. */
  #watch(moment: Moment): () => boolean {
    const output = outputOf(this.path);
    const names = (folder: string): string[] => {
      try {
        return readdirSync(folder);
      } catch {
        return [];
      }
    };
    const isHere = (folder: string, half: RegExp) => names(folder).some((name) => half.test(name));
    const adapters = () => names(output).filter((name) => /^(a\d|twin)$/.test(name)).length;
    const [lines, exported, asked] = [this.#lines(), adapters(), this.#asked];
    const more = 1 + this.rng.below(40);
    const nextLines = () => this.#lines() < lines || this.#lines() >= lines + more;
    if (moment === "step") return nextLines;
    if (moment === "request") return () => this.#asked > asked || nextLines();
    if (moment === "export") return () => adapters() > exported;
    if (moment === "beginning") return () => true;
    const of = join(output, "checkpoints");
    return () => nextLines() && names(of).some((name) => isHere(join(of, name), /\.part$/));
  }

  /** Of one stage, where there are no others, and of a server that is not up yet, null. */
  #pidOf(victim: Victim, coordinator: number): number | null {
    if (victim === "coordinator") return coordinator;
    try {
      const command = victim === "server" ? "nats-server" : "stage --orders";
      const found = childrenOf(coordinator).filter((pid) => commandOf(pid).includes(command));
      return found[this.rng.below(Math.max(1, found.length))] ?? (victim === "stage" ? coordinator : null);
    } catch {
      return null;
    }
  }
}

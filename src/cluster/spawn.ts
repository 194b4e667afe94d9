// The one place that starts other programs.
//
// A long-lived child is in a session of its own, so that a Ctrl-C at the terminal reaches only the coordinator, which then
// ends its children in order. It dies with its parent, however that ends: the flag below makes Bun, in a checkout and in the
// compiled binary alike, ask Linux to kill it when its parent ends (PR_SET_PDEATHSIG), before any of mlora's code runs.
// Another program is started through mlora itself: `child` below becomes that program by execve, which keeps the request, so
// that no process stands between.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { MOST_TIMER_MS, sleep } from "../base/clock.ts";
import { inheritedEnvironment } from "../base/env.ts";
import { RunError, textOf } from "../base/errors.ts";

/** How a child ended. `stderr` is the end of what it wrote there, `stdout` the same where it was asked for. */
export type Ending = {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stderr: string;
  readonly stdout: string;
};

export type Child = AsyncDisposable & {
  /** Its name in messages: "stage 2", "nats-server". */
  readonly name: string;
  readonly pid: number;
  readonly ended: Promise<Ending>;
  /** Asks it to end (SIGTERM), kills it after `graceMs`, and waits until it is gone. Any number of times. */
  readonly stop: (graceMs?: number) => Promise<Ending>;
  /** Kills it at once with all that it has started and that is in its process group. */
  readonly kill: () => void;
};

export type ChildOptions = {
  readonly name: string;
  /** Written to its standard input, which is then closed: where secrets go. */
  readonly input?: string;
  /** Whether the end of what it writes to standard output is kept; a number: as many characters. */
  readonly keepsOutput?: boolean | number;
  /** Called with each line that it writes to stderr. */
  readonly line?: (line: string) => void;
  /** Its whole environment; left out, that of this process. */
  readonly environment?: Readonly<Record<string, string>>;
};

/** Makes Bun die with its parent, and its own children with it. The same as --no-orphans, which a compiled binary lacks. */
const DIE_WITH_PARENT = { BUN_FEATURE_FLAG_NO_ORPHANS: "1" };
const GRACE_MS = 3_000;
/** Characters of output that are kept. */
const KEPT = 16_384;
/** Looks, so far apart, at an output that stays open after its child has ended, before it is left. */
const [LOOKS, LOOK_MS] = [3, 1_000];
/** Starts mlora itself once more, with these arguments. Throws a RunError, `spawn.start`. */
export const startSelf = (args: readonly string[], options: ChildOptions): Child =>
  start([...self(), "child", `${process.pid}`, ...args], options);

/** Why a program that a recipe names cannot be started, and the way out; null where it can. */
export function programFault(program: string): { readonly message: string; readonly hint: string } | null {
  if (Bun.which(program) !== null) return null;
  return program.includes("/") && existsSync(program)
    ? { message: `'${program}' is not an executable file`, hint: "make it one (chmod +x), or name its interpreter before it" }
    : { message: `there is no program '${program}'`, hint: "give its path, from the folder that mlora is started in" };
}

/** Starts another program by its absolute path, as a child that dies with this process. Throws a RunError, `spawn.start`. */
export const startProgram = (path: string, args: readonly string[], options: ChildOptions): Child =>
  startSelf(["exec", path, ...args], options);

/**
 * The beginning of a child's life, called by main.ts with the arguments after `child`: returns the arguments that are left,
 * or null where the parent was gone before Linux was asked to watch it. Does not return where another program takes this
 * process over.
 */
export function beChild([parent, ...args]: readonly string[]): readonly string[] | null {
  if (process.ppid !== Number(parent)) return null;
  if (args[0] !== "exec") return args;
  const [, path, ...rest] = args;
  const environment = Object.entries(inheritedEnvironment()).filter(([name]) => !(name in DIE_WITH_PARENT));
  return process.execve!(path!, [path!, ...rest], Object.fromEntries(environment));
}

/** How this program is started: the compiled binary, or Bun with the checkout's main.ts. */
const self = (): string[] =>
  Bun.isStandaloneExecutable ? [process.execPath] : [process.execPath, join(import.meta.dir, "..", "main.ts")];

function start(command: readonly string[], { name, input, keepsOutput = false, line, environment }: ChildOptions): Child {
  const child = attempt(name, () =>
    Bun.spawn([...command], {
      detached: true,
      stdin: input === undefined ? "ignore" : new TextEncoder().encode(input),
      stdout: keepsOutput === false ? "ignore" : "pipe",
      stderr: "pipe",
      env: { ...(environment ?? inheritedEnvironment()), ...DIE_WITH_PARENT },
    }),
  );
  const stderr = new Output(child.stderr, KEPT, line);
  const kept = typeof keepsOutput === "number" ? Math.max(keepsOutput, KEPT) : KEPT;
  const stdout = child.stdout instanceof ReadableStream ? new Output(child.stdout, kept) : null;
  const ended = child.exited.then(async (code): Promise<Ending> => {
    const signal = child.signalCode as string | null;
    const [said, printed] = await Promise.all([stderr.end(), stdout?.end() ?? ""]);
    return { code: signal === null ? code : null, signal, stderr: said, stdout: printed };
  });
  const stop = async (graceMs = GRACE_MS): Promise<Ending> => {
    child.kill("SIGTERM");
    if ((await Promise.race([child.exited, sleep(graceMs)])) === undefined) child.kill("SIGKILL");
    return ended;
  };
  const kill = () => {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // All of them have ended.
    }
  };
  return { name, pid: child.pid, ended, stop, kill, [Symbol.asyncDispose]: async () => void (await stop()) };
}

/**
 * Waits for the end of a child, which is killed after `mostMs`. `fault`: what went wrong, in words that follow its name; null
 * where it ended with 0.
 */
export async function endWithin(
  child: Child,
  mostMs: number,
): Promise<{ readonly fault: string | null; readonly stdout: string }> {
  let isLate = false;
  const timer = setTimeout(
    () => {
      isLate = true;
      child.kill();
    },
    Math.min(mostMs, MOST_TIMER_MS),
  );
  const ending = await child.ended.finally(() => clearTimeout(timer));
  const { code, stdout } = ending;
  if (isLate) return { fault: `was still running after ${mostMs / 1000} s`, stdout };
  return { fault: code === 0 ? null : describeEnding(ending), stdout };
}

/** How a child ended, in words: "was killed by SIGKILL", "ended with 1: <its last line>", with all its output after a crash. */
export function describeEnding({ code, signal, stderr }: Ending): string {
  if (signal === "SIGKILL" || signal === "SIGTERM") return `was killed by ${signal}`; // its output says nothing about that
  const output = stderr.trim();
  const why = code === 1 || code === 2 ? (output.split("\n").at(-1) ?? "") : output;
  return `${signal ? `was killed by ${signal}` : `ended with ${code}`}${why === "" ? "" : `: ${why.slice(-4000)}`}`;
}

/** The last of what a child writes to one of its outputs, `most` characters. */
class Output {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #closed: Promise<true>;
  #kept = "";

  constructor(
    stream: ReadableStream<Uint8Array>,
    private readonly most: number,
    line?: (line: string) => void,
  ) {
    this.#reader = stream.getReader() as ReadableStreamDefaultReader<Uint8Array>;
    this.#closed = this.#read(line);
  }

  /** To be asked when the child has ended: the rest is read, but not what other processes write to it. */
  async end(): Promise<string> {
    for (let look = 0; look < LOOKS; look++) if (await Promise.race([this.#closed, sleep(LOOK_MS)])) return this.#kept;
    void this.#reader.cancel();
    return this.#kept;
  }

  async #read(line?: (line: string) => void): Promise<true> {
    const decoder = new TextDecoder();
    let open = "";
    for (let got = await this.#reader.read(); !got.done; got = await this.#reader.read()) {
      const text = decoder.decode(got.value, { stream: true });
      this.#kept = (this.#kept + text).slice(-this.most);
      if (!line) continue;
      const lines = (open + text).split("\n");
      open = lines.pop()!.slice(-KEPT);
      for (const whole of lines) line(whole);
    }
    if (open !== "") line?.(open);
    return true;
  }
}

function attempt<T>(name: string, start: () => T): T {
  try {
    return start();
  } catch (error) {
    throw new RunError("spawn.start", `cannot start ${name}: ${textOf(error)}`, undefined, { cause: error });
  }
}

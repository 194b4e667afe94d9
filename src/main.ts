// The command line, and the only place that ends the process. Exit codes: 0 done, 1 it failed, 2 the request was wrong and
// nothing was begun, 70 a bug in mlora. Few flags: what shapes a run stands in its recipe, so that a run can be repeated.

import { type CAC, cac } from "cac";
import { environment } from "./base/env.ts";
import { MloraError, RequestError, RunError } from "./base/errors.ts";
import { systemError } from "./base/faults.ts";
import { setLogLevel } from "./base/log.ts";
import { writeStderr, writeStdout } from "./base/terminal.ts";
import { VERSION } from "./base/version.ts";
import type { BenchFlags } from "./cli/bench.ts";
import { COMMAND_NAMES, type CommandName, factsOf, REPEATED } from "./cli/commands.ts";
import type { DataFlags } from "./cli/data.ts";
import type { ExportFlags } from "./cli/export.ts";
import type { GenerateFlags } from "./cli/generate.ts";
import type { JobsFlags } from "./cli/jobs.ts";
import type { PlanFlags } from "./cli/plan.ts";
import type { PushFlags } from "./cli/push.ts";
import type { RunFlags } from "./cli/run.ts";
import type { StageFlags } from "./cli/stage.ts";
import type { SubmitFlags } from "./cli/submit.ts";
import type { Overrides } from "./recipe/recipe.ts";
import { nearest } from "./recipe/suggest.ts";
import type { ServeFlags } from "./serve/config.ts";

const FAILED = 1;
const WRONG_REQUEST = 2;
const BUG = 70;

/** Flags as cac parses them. */
type Flags<T = object> = T & Readonly<Record<string, unknown>>;
/** Called with the command's arguments and, last, its flags. */
type Action = (cli: CAC, ...args: never[]) => Promise<void> | void;

const remote = () => import("./cli/remote.ts");

/** Each command is imported when it is run, so that it costs the others nothing. */
const ACTIONS: Readonly<Record<CommandName, Action>> = {
  run: async (_, recipe: string, flags: RunFlags) =>
    (await import("./cli/run.ts")).run(recipe, { ...flags, ...overrides(flags) }),
  plan: async (_, recipe: string, flags: PlanFlags) =>
    (await import("./cli/plan.ts")).plan(recipe, { ...flags, ...overrides(flags) }),
  init: async (_, model: unknown, data: unknown, { output }: Flags) =>
    (await import("./cli/init.ts")).init(`${model}`, `${data}`, output === undefined ? "recipe.toml" : `${output}`),
  data: async (_, recipe: string, adapter: string | undefined, flags: DataFlags) =>
    (await import("./cli/data.ts")).data(recipe, adapter, flags),
  report: async (_, folder: unknown, flags: Flags) => (await import("./cli/report.ts")).report(`${folder}`, flags),
  sync: async (_, folder: unknown) => (await import("./cli/sync.ts")).sync(`${folder}`),
  schema: async () => (await import("./cli/schema.ts")).schema(),
  ps: async (_, { json = false }: { json?: boolean }) => (await remote()).ps(json),
  stop: async (_, run: string, adapter?: string) => (await remote()).change(run, "stop", adapter),
  pause: async (_, run: string, adapter?: string) => (await remote()).change(run, "pause", adapter),
  resume: async (_, run: string, adapter?: string) => (await remote()).change(run, "resume", adapter),
  add: async (_, run: string, recipe: string) => (await remote()).add(run, recipe),
  fork: async (_, run: string, adapter: string, name: string, { set }: Flags) =>
    (await remote()).fork(run, adapter, name, set === undefined ? "" : `${set}`),
  stage: async (_, flags: StageFlags) => (await import("./cli/stage.ts")).stage(flags),
  export: async (_, adapter: unknown, flags: ExportFlags) =>
    (await import("./cli/export.ts")).exportAdapter(`${adapter}`, flags),
  push: async (_, adapter: unknown, repo: unknown, flags: PushFlags) =>
    (await import("./cli/push.ts")).push(`${adapter}`, `${repo}`, flags),
  generate: async (_, base: unknown, flags: GenerateFlags) =>
    (await import("./cli/generate.ts")).generate(base === undefined ? undefined : `${base}`, flags),
  submit: async (_, recipe: unknown, flags: SubmitFlags) => (await import("./cli/submit.ts")).submit(`${recipe}`, flags),
  jobs: async (_, action: string | undefined, job: unknown, flags: JobsFlags) =>
    (await import("./cli/jobs.ts")).jobs(action, job === undefined ? undefined : `${job}`, flags),
  serve: async (_, model: unknown, flags: ServeFlags) => (await import("./cli/serve.ts")).serve(`${model}`, flags),
  doctor: async (_, flags: { json?: boolean }) => (await import("./cli/doctor.ts")).doctor(flags),
  bench: async (_, flags: BenchFlags) => (await import("./cli/bench.ts")).bench(flags),
  completion: async (_, shell: unknown) => (await import("./cli/completion.ts")).completion(`${shell}`),
  man: async (_, page: unknown, { output }: Flags) =>
    (await import("./cli/man.ts")).man(
      page === undefined ? undefined : `${page}`,
      output === undefined ? undefined : `${output}`,
    ),
  help: (cli, name?: string) => {
    if (name === undefined) cli.globalCommand.outputHelp();
    else (cli.commands.find((command) => command.isMatched(name)) ?? unknownCommand(cli, name)).outputHelp();
  },
};

function commandLine(): CAC {
  const cli = cac("mlora");
  for (const name of COMMAND_NAMES) {
    const { usage, purpose, flags = [], examples } = factsOf(name);
    const command = cli.command(usage, purpose);
    for (const [flag, meaning] of flags) command.option(flag, meaning);
    for (const [example, does] of examples) command.example(`  ${example}\n      ${does}`);
    command.action((...args: unknown[]) => (ACTIONS[name] as (...all: unknown[]) => Promise<void>)(cli, ...args));
  }
  cli.option("-v, --version", "Print the version");
  cli.help((sections) => [
    { body: `mlora ${VERSION}: trains many LoRA adapters at once on one shared language model` },
    ...sections
      .slice(1) // cac's own first line
      .filter(({ title }) => !title?.startsWith("For more info"))
      .map((section) => ({ ...section, body: section.body.replace(/ +$/gm, "") })),
  ]);
  return cli;
}

/** What is no number, however it looks: a folder may be called 0612, and a prompt be 1e3. */
const TEXT = /<(folder|file|text|id|name|url|host:port|keys)>/;

/** Gives flags that are texts back as they were typed, where cac has made numbers of them. */
function restoreTexts({ options, matchedCommand }: CAC, args: readonly string[]): void {
  for (const { name, rawName } of matchedCommand?.options ?? []) {
    const [value, flag] = [options[name], /--[\w-]+/.exec(rawName)?.[0] ?? `--${name}`]; // cac's name is in camel case
    if (!TEXT.test(rawName) || value === undefined || typeof value === "boolean") continue; // a missing one is reported later
    const typed = args.flatMap((arg, i) =>
      arg === flag ? [args[i + 1] ?? ""] : arg.startsWith(`${flag}=`) ? [arg.slice(flag.length + 1)] : [],
    );
    options[name] = Array.isArray(value) ? typed : typed[0];
  }
}

/**
 * Refuses what is empty: a variable of the shell that is not set would be the current folder, the seed 0, the price 0. Texts,
 * as of prompts, have their own checks.
 */
function refuseEmpty({ args: positional, matchedCommand }: CAC, args: readonly string[]): void {
  const empty = positional.indexOf("");
  if (empty >= 0) {
    const { value = "argument" } = matchedCommand?.args[empty] ?? {};
    throw new RequestError("cli.argument", `<${value}> is empty`, "a variable may not be set; '.' names the current folder");
  }
  for (const { rawName } of matchedCommand?.options ?? []) {
    const flag = /--[\w-]+/.exec(rawName)?.[0];
    if (flag === undefined || rawName.includes("<text>")) continue;
    if (args.some((arg, i) => arg === `${flag}=` || (arg === flag && args[i + 1] === "")))
      throw new RequestError("cli.flag", `${flag} is empty`, "give it a value, or leave it out; a variable may not be set");
  }
}

/** Flags that override the recipe. */
const overrides = ({ output, device, seed, stages }: Overrides): Overrides => ({
  ...(output === undefined ? {} : { output }),
  ...(device === undefined ? {} : { device: `${device}` }),
  ...(seed === undefined ? {} : { seed }),
  ...(stages === undefined ? {} : { stages }),
});

function unknownCommand(cli: CAC, name: string): never {
  const meant = nearest(
    name,
    cli.commands.map((command) => command.name),
  );
  const hint = `${meant ? `did you mean '${meant}'? ` : ""}'mlora help' lists the commands`;
  throw new RequestError("cli.command", `there is no command '${name}'`, hint);
}

/** cac's complaints about options and arguments, with what the command takes. */
function usageError(cli: CAC, message: string): RequestError {
  const command = cli.matchedCommand;
  const [, wrong] = /^Unknown option `-+(.+)`$/.exec(message) ?? [];
  const known = [...(command?.options ?? []), ...cli.globalCommand.options].map(({ name }) => name);
  const meant = wrong === undefined ? null : nearest(wrong, known);
  const usage = `usage: mlora ${command ? `${command.rawName} [options]` : "<command> [options]"}; see mlora help ${command?.name ?? ""}`;
  const text = message.replaceAll("`", "'").replace(/^./, (first) => first.toLowerCase());
  return new RequestError("cli.usage", text, `${meant ? `did you mean --${meant}? ` : ""}${usage.trim()}`);
}

/** A number below 0 after a flag is read as flags of one letter. */
function refuseNegative(args: readonly string[]): void {
  const end = args.indexOf("--");
  const found = args.slice(0, end < 0 ? args.length : end).find((arg) => /^-\.?\d/.test(arg));
  if (found === undefined) return;
  const flag = args[args.indexOf(found) - 1];
  const way = flag?.startsWith("--") && !flag.includes("=") ? `${flag}=${found}` : `--flag=${found}`;
  throw new RequestError("cli.usage", `'${found}' begins with '-', as flags do`, `write a flag's value after '=': ${way}`);
}

/** Returns the exit code. */
async function main(args: readonly string[]): Promise<number> {
  if (args[0] === "--version" || args[0] === "-v") {
    writeStdout(`mlora ${VERSION}\n`);
    return 0;
  }
  setLogLevel(Number(environment("MLORA_DEBUG")) || 0);
  const cli = commandLine();
  try {
    cli.parse(["", "", ...args], { run: false }); // with `run` it would not wait for the command
    refuseNegative(args);
    for (const [flag, value] of Object.entries(cli.options))
      if (flag !== "--" && Array.isArray(value) && !(REPEATED[cli.matchedCommandName ?? ""] === flag))
        throw usageError(cli, `--${flag} was given ${value.length} times`);
    restoreTexts(cli, args);
    if (cli.options["help"]) return 0;
    if (!cli.matchedCommand && cli.args[0] !== undefined) unknownCommand(cli, cli.args[0]);
    if (!cli.matchedCommand) {
      cli.globalCommand.checkUnknownOptions();
      cli.outputHelp();
      return WRONG_REQUEST;
    }
    refuseEmpty(cli, args);
    await cli.runMatchedCommand();
    return 0;
  } catch (error) {
    if (error instanceof Error && error.name === "CACError") throw usageError(cli, error.message);
    throw error;
  }
}

/** Says what went wrong on stderr; returns the exit code. */
function report(thrown: unknown): number {
  const error = systemError(thrown) ?? thrown;
  const lines =
    error instanceof MloraError
      ? [`error[${error.code}]: ${error.message}`, ...(error.hint ? [`hint: ${error.hint}`] : [])]
      : [
          `error[bug]: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
          `this is a bug in mlora ${VERSION}`,
        ];
  writeStderr(`${lines.join("\n")}\n`);
  return error instanceof MloraError ? error.exit : BUG;
}

/** Ends the process once everything written has left it; a reader that went away (`mlora ... | head`) is no fault. */
const end = (code: number): void => {
  process.exitCode = Math.max(Number(process.exitCode ?? 0), code); // what is still to leave may yet find the disk full
  process.stdout.end(() => process.exit());
};

/** The arguments of the command; null of a child without its parent: no process reads why. */
async function commandArguments(args: readonly string[]): Promise<readonly string[] | null> {
  if (args[0] !== "child") return args;
  try {
    return (await import("./cluster/spawn.ts")).beChild(args.slice(1));
  } catch (error) {
    report(error);
    return null;
  }
}

// Before standard output and error are touched, which Bun then leaves non-blocking: a program that takes this process over
// could not write much at once.
const given = await commandArguments(process.argv.slice(2));
// The reader of stderr is gone: a run is worth more than its progress, and continues.
process.stderr.on("error", () => undefined);
process.stdout.on("error", (error: Error & { readonly code?: string }) => {
  if (error.code !== "EPIPE") end(report(new RunError("cli.output", `standard output cannot be written: ${error.message}`)));
});
process.on("uncaughtException", (error) => end(report(error)));
process.on("unhandledRejection", (error) => end(report(error)));
end(given === null ? FAILED : await main(given).catch(report));

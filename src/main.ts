// The command line, and the only place that ends the process. Exit codes: 0 done, 1 it failed, 2 the request was wrong and
// nothing was begun, 70 a bug in mlora. Few flags: what shapes a run stands in its recipe, so that a run can be repeated.

import { type CAC, type Command, cac } from "cac";
import { environment } from "./base/env.ts";
import { MloraError, RequestError, RunError } from "./base/errors.ts";
import { systemError } from "./base/faults.ts";
import { setLogLevel } from "./base/log.ts";
import { writeStderr, writeStdout } from "./base/terminal.ts";
import { VERSION } from "./base/version.ts";
import type { BenchFlags } from "./cli/bench.ts";
import type { DataFlags } from "./cli/data.ts";
import type { ExportFlags } from "./cli/export.ts";
import type { GenerateFlags } from "./cli/generate.ts";
import type { RunFlags } from "./cli/run.ts";
import type { StageFlags } from "./cli/stage.ts";
import type { Overrides } from "./recipe/recipe.ts";
import { nearest } from "./recipe/suggest.ts";
import type { ServeFlags } from "./serve/config.ts";

const FAILED = 1;
const WRONG_REQUEST = 2;
const BUG = 70;

/** Of a command, the flag that may be given several times. */
const REPEATED: Readonly<Record<string, string>> = { generate: "adapter" };

/** Each command is imported when it is run, so that it costs the others nothing. */
function commandLine(): CAC {
  const cli = cac("mlora");
  const onRecipe = (usage: string, purpose: string): Command =>
    cli
      .command(usage, purpose)
      .option("--output <folder>", "Where results go, instead of the recipe's run.output")
      .option("--device <device>", "auto, cpu or cuda, instead of the recipe's run.device")
      .option("--seed <number>", "Instead of the recipe's run.seed")
      .option("--stages <stages>", "auto, a number, or the layers of each (10,12.5,9.5), instead of the recipe's run.stages");
  onRecipe("run <recipe>", "Train every adapter of a recipe")
    .option("--trace <file>", "Write what every stage did when, and one step's kernels, in Chrome's trace format")
    .option("--resume", "Continue the run in the output folder, or fail; without it, continue where there is one")
    .option("--keep-open", "When all adapters have ended, wait for more (mlora add) until the run is stopped")
    .option("--link <kind>", "auto, ipc, nccl, shm or nats: how activations go between stages")
    .option("--nats <url>", "A NATS server that stages on other machines reach")
    .option("--listen <host:port>", "Instead: where the run's own server listens for them")
    .option("--run <id>", "With --nats or --listen: the run's id, instead of a random one")
    .option("--here <number>", "With --nats or --listen: stages that are started on this machine (default: 0)")
    .option("--insecure", "With --listen: let other machines in without a certificate (MLORA_NATS_CERT, MLORA_NATS_KEY)")
    .action(async (recipe: string, flags: RunFlags) =>
      (await import("./cli/run.ts")).run(recipe, { ...flags, ...overrides(flags) }),
    );
  onRecipe("plan <recipe>", "Say what a run would do, without doing it")
    .option("--svg <file>", "Draw the schedule: which stage does what, for which adapter, when")
    .option("--json", "For machines")
    .action(async (recipe: string, { json = false, svg, ...flags }: Overrides & { json?: boolean; svg?: unknown }) =>
      (await import("./cli/plan.ts")).plan(recipe, {
        ...overrides(flags),
        ...(svg === undefined ? {} : { svg: `${svg}` }),
        json,
      }),
    );
  cli
    .command("data <recipe> [adapter]", "Show rows as they will be trained: what is learned, cut and dropped")
    .option("--row <number>", "This row of the files, from 1, instead of counts and the first rows")
    .option("--eval", "Rows of the evaluation files")
    .option("--ids", "A line for each token, with its id and its weight in the loss")
    .option("--json", "For machines")
    .action(async (recipe: string, adapter: string | undefined, flags: DataFlags) =>
      (await import("./cli/data.ts")).data(recipe, adapter, flags),
    );
  cli
    .command("schema", "Print what a recipe may say as a JSON schema, for editors")
    .action(async () => (await import("./cli/schema.ts")).schema());
  const remote = () => import("./cli/remote.ts");
  cli
    .command("ps", "List the runs under way on this machine, with their adapters")
    .option("--json", "For machines")
    .action(async ({ json = false }: { json?: boolean }) => (await remote()).ps(json));
  cli
    .command("stop <run> [adapter]", "End a run, or one of its adapters; what was trained is saved")
    .action(async (run: string, adapter?: string) => (await remote()).change(run, "stop", adapter));
  cli
    .command("pause <run> [adapter]", "Take a run's adapters off the stages, or one of them, until they are resumed")
    .action(async (run: string, adapter?: string) => (await remote()).change(run, "pause", adapter));
  cli
    .command("resume <run> [adapter]", "Resume paused adapters")
    .action(async (run: string, adapter?: string) => (await remote()).change(run, "resume", adapter));
  cli
    .command("add <run> <recipe>", "Have the adapters of another recipe for the same base model join a run")
    .action(async (run: string, recipe: string) => (await remote()).add(run, recipe));
  cli
    .command("fork <run> <adapter> <name>", "Train a copy of an adapter next to it, with other hyper-parameters")
    .option("--set <keys>", 'What the copy has otherwise, as in a recipe: "learning_rate = 1e-4, steps = 500"')
    .action(async (run: string, adapter: string, name: string, { set }: { set?: unknown }) =>
      (await remote()).fork(run, adapter, name, set === undefined ? "" : `${set}`),
    );
  cli
    .command("stage", "Run one pipeline stage for a remote coordinator")
    .option("--nats <url>", "The NATS server that the coordinator prints")
    .option("--run <id>", "The run's id, as the coordinator prints it")
    .option("--key <file>", "The file with the run's key, copied from where the coordinator prints (default: MLORA_RUN_KEY)")
    .option("--stage <number>", "Which stage, from 0 (default: one that is free)")
    .option("--device <device>", "auto, cpu or cuda")
    .option("--precision <precision>", "auto, bf16, fp32, int8, nf4 or fp8, as the recipe has it")
    .option("--gpu <number>", "Which of several GPUs (default: 0)")
    .option("--model <folder>", "Where the base model lies on this machine, if not where the coordinator has it")
    .option("--orders", "Take server, run and key from standard input, and what else a coordinator gives")
    .action(async (flags: StageFlags) => (await import("./cli/stage.ts")).stage(flags));
  cli
    .command("export <adapter>", "Merge an adapter's folder into its base model: a model for programs without adapters")
    .option("--base <folder>", "The base model, where the adapter's own config does not say where it is now")
    .option("--output <folder>", "Where the merged model goes: a folder that is new or empty")
    .option("--dtype <dtype>", "bf16 or fp32 (default: bf16)")
    .option("--shard <size>", "The largest size of a file of weights (default: 5GB)")
    .option("--json", "For machines")
    .action(async (adapter: string, flags: ExportFlags) =>
      (await import("./cli/export.ts")).exportAdapter(`${adapter}`, flags),
    );
  cli
    .command("generate [base]", "Continue prompts with adapters, many at once; [base] is a base model's folder or a recipe")
    .option("--adapter <folder>", "An adapter's folder, or its name in the recipe; repeat for several; 'base' for none")
    .option("--prompt <text>", "What is to be continued or answered")
    .option(
      "--prompts <file>",
      'JSONL as for training; a row\'s "adapter" names the adapter that answers, else all do; answers are compared',
    )
    .option("--system <text>", "The system message, instead of the recipe's")
    .option("--raw", "Without the model's chat template")
    .option("--max-new-tokens <number>", "Most new tokens (default: 128)")
    .option("--temperature <number>", "0 takes the likeliest token; higher is more by chance (default: 0)")
    .option("--top-p <number>", "Only the likeliest tokens that have this probability together (default: 1)")
    .option("--top-k <number>", "Only that many of the likeliest tokens (default: 0, all)")
    .option("--seed <number>", "The same seed gives the same text (default: 0)")
    .option("--device <device>", "auto, cpu or cuda")
    .option("--precision <precision>", "How the base is held: auto, bf16, fp32, int8, nf4 or fp8")
    .option("--json", "For machines: a line for each answer")
    .action(async (base: unknown, flags: GenerateFlags) =>
      (await import("./cli/generate.ts")).generate(base === undefined ? undefined : `${base}`, flags),
    );
  cli
    .command("serve <model>", "Serve a base model: fine-tuning jobs and answers, as OpenAI's clients ask for them")
    .option("--config <file>", "What the server is, as TOML (docs/serve.md)")
    .option("--folder <folder>", "Where files, jobs and adapters are kept (default: mlora-server)")
    .option("--listen <host:port>", "Where clients reach it (default: 127.0.0.1:8000)")
    .option("--name <name>", "What clients call the model (default: the last two parts of its folder)")
    .option("--keys <file>", "A line for each key: a name and the key (default: one is made and shown once)")
    .option("--insecure", "Let other machines in without a certificate")
    .action(async (model: string, flags: ServeFlags) => (await import("./cli/serve.ts")).serve(`${model}`, flags));
  cli
    .command("doctor", "Say what this machine has and lacks")
    .option("--json", "For machines")
    .action(async (flags: { json?: boolean }) => (await import("./cli/doctor.ts")).doctor(flags));
  cli
    .command("bench", "Measure how fast this machine trains a model of a known shape")
    .option("--shape <name>", "The base model's shape (default: smollm2-135m)")
    .option("--device <device>", "auto, cpu or cuda")
    .option("--adapters <number>", "Adapters that train together (default: 1)")
    .option("--rows <number>", "Rows in an adapter's batch (default: 4)")
    .option("--length <number>", "Tokens in a row (default: 64)")
    .option("--method <method>", "PEFT method, as in a recipe (default: lora)")
    .option("--rank <rank>", "Rank of the adapters, or of each in turn: 4,64 (default: 16)")
    .option("--dropout <number>", "Dropout of the adapters (default: 0)")
    .option("--targets <targets>", "all-linear or qkvo (default: all-linear)")
    .option("--steps <number>", "Steps to measure (default: 10)")
    .option("--recomputation <how>", "auto, none, selective or full")
    .option("--tokens <number>", "Most tokens in a pass")
    .option("--stages <stages>", "Stages of a pipeline, a process each: a number, or the layers of each (default: 1)")
    .option("--link <kind>", "auto, ipc, nccl, shm or nats: how activations go between stages")
    .option("--precision <precision>", "How the base is held: auto, bf16, fp32, int8, nf4 or fp8")
    .option("--trace <file>", "Write one step's kernels in Chrome's trace format")
    .option("--checkpoint <seconds>", "Keep every adapter so often, in a temporary folder, to see what it costs")
    .option("--json", "For machines")
    .action(async (flags: BenchFlags) => (await import("./cli/bench.ts")).bench(flags));
  cli.command("help [command]", "Say what a command does and takes").action((name?: string) => {
    if (name === undefined) cli.globalCommand.outputHelp();
    else (cli.commands.find((command) => command.isMatched(name)) ?? unknownCommand(cli, name)).outputHelp();
  });
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
const TEXT = /<(folder|file|text|id)>/;

/** Gives flags that are texts back as they were typed, where cac has made numbers of them. */
function restoreTexts({ options, matchedCommand }: CAC, args: readonly string[]): void {
  for (const { name, rawName } of matchedCommand?.options ?? []) {
    const [value, flag] = [options[name], `--${name}`];
    if (!TEXT.test(rawName) || value === undefined || typeof value === "boolean") continue; // a missing one is reported later
    const typed = args.flatMap((arg, i) =>
      arg === flag ? [args[i + 1] ?? ""] : arg.startsWith(`${flag}=`) ? [arg.slice(flag.length + 1)] : [],
    );
    options[name] = Array.isArray(value) ? typed : typed[0];
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

/** Returns the exit code. */
async function main(args: readonly string[]): Promise<number> {
  if (args[0] === "child") {
    const rest = (await import("./cluster/spawn.ts")).beChild(args.slice(1));
    return rest === null ? FAILED : main(rest); // without its parent no process reads why
  }
  if (args[0] === "--version" || args[0] === "-v") {
    writeStdout(`mlora ${VERSION}\n`);
    return 0;
  }
  setLogLevel(Number(environment("MLORA_DEBUG")) || 0);
  const cli = commandLine();
  try {
    cli.parse(["", "", ...args], { run: false }); // with `run` it would not wait for the command
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

// The reader of stderr is gone: a run is worth more than its progress, and continues.
process.stderr.on("error", () => undefined);
process.stdout.on("error", (error: Error & { readonly code?: string }) => {
  if (error.code !== "EPIPE") end(report(new RunError("cli.output", `standard output cannot be written: ${error.message}`)));
});
process.on("uncaughtException", (error) => end(report(error)));
process.on("unhandledRejection", (error) => end(report(error)));
end(await main(process.argv.slice(2)).catch(report));

// `mlora generate`: continues many prompts under many adapters together, a token each in a pass.

import { now } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { PRECISIONS } from "../base/precision.ts";
import { writeStderr } from "../base/terminal.ts";
import { count, duration, shortPath } from "../base/units.ts";
import { type GenerationOptions, isExact, prepareGeneration, type TextGeneration } from "../session/text-generation.ts";
import { DEVICES, oneOf, wholeNumber } from "./flags.ts";
import { Printer } from "./generate/print.ts";

export type GenerateFlags = {
  readonly adapter?: unknown;
  readonly prompt?: unknown;
  readonly prompts?: unknown;
  readonly system?: unknown;
  readonly raw?: boolean;
  readonly maxNewTokens?: unknown;
  readonly temperature?: unknown;
  readonly topP?: unknown;
  readonly topK?: unknown;
  readonly seed?: unknown;
  readonly device?: unknown;
  readonly precision?: unknown;
  readonly json?: boolean;
};

const MAX_NEW_TOKENS = 128;

/** Generates, and reports on stderr. Throws a RequestError where that is not possible as asked. */
export async function generate(base: string | undefined, flags: GenerateFlags): Promise<void> {
  const generation = await prepareGeneration(optionsOf(base, flags));
  const names = generation.adapters.length === 0 ? "no adapter" : generation.adapters.join(", ");
  print(`${shortPath(generation.base)} on ${generation.device}, ${names}`);
  for (const notice of generation.notices) print(`notice: ${notice}`);
  await using opened = await generation.open();
  const printer = new Printer(generation, flags.json ?? false);
  const begun = now();
  for await (const _ of opened.generate()) {
    printer.update();
    if (process.stdout.errored) return; // the reader has closed it (`mlora generate ... | head`)
  }
  print(summary(generation, (now() - begun) / 1000));
}

const print = (line: string): void => {
  writeStderr(`${line}\n`);
};

function optionsOf(base: string | undefined, flags: GenerateFlags): GenerationOptions {
  const { adapter = [], raw: isRaw = false, device, precision } = flags;
  const textOf = (flag: "prompt" | "prompts" | "system") => (flags[flag] === undefined ? undefined : `${flags[flag]}`);
  return {
    ...{ base, isRaw, prompt: textOf("prompt"), prompts: textOf("prompts"), system: textOf("system") },
    adapters: (Array.isArray(adapter) ? adapter : [adapter]).map(String),
    sampling: samplingOf(flags),
    limit: wholeNumber("max-new-tokens", flags.maxNewTokens ?? MAX_NEW_TOKENS, 1),
    seed: wholeNumber("seed", flags.seed ?? 0, 0),
    device: device === undefined ? undefined : oneOf("device", `${device}`, DEVICES),
    precision: precision === undefined ? undefined : oneOf("precision", `${precision}`, PRECISIONS),
  };
}

/** The likeliest token by default; a temperature of 1 with --top-p or --top-k alone. */
function samplingOf({ temperature, topP, topK }: GenerateFlags): GenerationOptions["sampling"] {
  const chosen = temperature ?? (topP === undefined && topK === undefined ? 0 : 1);
  if (typeof chosen !== "number" || !(chosen >= 0) || chosen > 100)
    throw new RequestError("cli.flag", `--temperature is ${chosen}`, "give it a number from 0 (the likeliest token) on");
  const most = topP ?? 1;
  if (typeof most !== "number" || !(most > 0 && most <= 1))
    throw new RequestError("cli.flag", `--top-p is ${most}`, "give it a number above 0, up to 1");
  return { temperature: chosen, topP: most, topK: wholeNumber("top-k", topK ?? 0, 0) };
}

function summary({ answers }: TextGeneration, seconds: number): string {
  const tokens = answers.reduce((all, { ids }) => all + ids.length, 0);
  const known = answers.filter((answer) => isExact(answer) !== null);
  const exactly = [...Map.groupBy(known, ({ question }) => question.name)].map(([name, of]) => {
    return `${name} ${of.filter((answer) => isExact(answer)).length} of ${of.length}`;
  });
  const speed = `${count(tokens)} tokens in ${duration(seconds)}, ${(tokens / seconds).toFixed(1)} tokens/s`;
  return exactly.length === 0 ? speed : `${speed}; exactly right: ${exactly.join(", ")}`;
}

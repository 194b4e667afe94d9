// `mlora generate`: continues many prompts under many adapters together, a token each in a pass.

import { now } from "../base/clock.ts";
import { PRECISIONS } from "../base/precision.ts";
import { writeStderr } from "../base/terminal.ts";
import { counted, duration, shortPath } from "../base/units.ts";
import {
  type GenerationOptions,
  isExact,
  prepareGeneration,
  type TextGeneration,
} from "../session/generation/text-generation.ts";
import { DEVICES, oneOf, wholeNumber } from "./flags.ts";
import { Printer } from "./generate/print.ts";
import { type SamplingFlags, samplingOf } from "./sampling-flags.ts";

export type GenerateFlags = SamplingFlags & {
  readonly adapter?: unknown;
  readonly prompt?: unknown;
  readonly prompts?: unknown;
  readonly system?: unknown;
  readonly raw?: boolean;
  readonly maxNewTokens?: unknown;
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

function summary({ answers }: TextGeneration, seconds: number): string {
  const tokens = answers.reduce((all, { ids }) => all + ids.length, 0);
  const known = answers.filter((answer) => isExact(answer) !== null);
  const exactly = [...Map.groupBy(known, ({ question }) => question.name)].map(([name, of]) => {
    return `${name} ${of.filter((answer) => isExact(answer)).length} of ${of.length}`;
  });
  const speed = `${counted(tokens, "token")} in ${duration(seconds)}, ${(tokens / seconds).toFixed(1)} tokens/s`;
  return exactly.length === 0 ? speed : `${speed}; exactly right: ${exactly.join(", ")}`;
}

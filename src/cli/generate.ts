// `mlora generate`: continues many prompts under many adapters together, a token each in a pass.

import { now } from "../base/clock.ts";
import { RequestError } from "../base/errors.ts";
import { weightFormat } from "../base/precision.ts";
import { writeStderr } from "../base/terminal.ts";
import { count, duration } from "../base/units.ts";
import type { Sampling } from "../data/sample.ts";
import { describeDevice } from "../engine/probe.ts";
import { stopTokens } from "../files/generation.ts";
import { checkFormat } from "../plan/format.ts";
import { planGeneration } from "../plan/generation.ts";
import { type Generation, generate as generateTokens } from "../session/generate.ts";
import { openGeneration } from "../session/open-generation.ts";
import { shortPath } from "../session/prepare.ts";
import { wholeNumber } from "./flags.ts";
import { isExact, Printer } from "./generate/print.ts";
import { type GenerateFlags, type GenerateRequest, readGenerateRequest } from "./generate/request.ts";

export type { GenerateFlags } from "./generate/request.ts";

const MAX_NEW_TOKENS = 128;

/** Generates, and reports on stderr. Throws a RequestError where that is not possible as asked. */
export async function generate(what: string | undefined, flags: GenerateFlags): Promise<void> {
  const sampling = samplingOf(flags);
  const limit = wholeNumber("max-new-tokens", flags.maxNewTokens ?? MAX_NEW_TOKENS, 1);
  const seed = wholeNumber("seed", flags.seed ?? 0, 0);
  const request = readGenerateRequest(what, flags);
  const { base, spec, exact, tokenizer, adapters, questions } = request;
  const generations = questions.map(({ adapter, ids }, i): Generation => {
    return { adapter, prompt: ids, limit: limitOf(request, i, limit), seed };
  });
  const device = describeDevice(request.device, request.precision);
  const format = weightFormat(request.precision, device.compute, exact);
  checkFormat(format, spec);
  const wanted = generations.map(({ adapter, prompt, limit }) => ({ adapter, prompt: prompt.length, limit }));
  const plan = planGeneration(spec, device, adapters, wanted, format);
  const stops = new Set([...stopTokens(base), ...request.ends]);
  const names = adapters.length === 0 ? "no adapter" : adapters.map(({ name }) => name).join(", ");
  print(`${shortPath(base)} on ${device.name}, ${names}`);
  for (const notice of request.notices) print(`notice: ${notice}`);
  await using engine = await openGeneration(plan, { folder: base }, adapters);
  const printer = new Printer(questions, tokenizer, flags.json ?? false);
  const begun = now();
  for await (const token of generateTokens(engine, generations, sampling, stops)) {
    printer.take(token);
    if (process.stdout.errored) return; // the reader has closed it (`mlora generate ... | head`)
  }
  print(summary(printer, (now() - begun) / 1000));
}

const print = (line: string): void => {
  writeStderr(`${line}\n`);
};

/** The likeliest token by default; a temperature of 1 with --top-p or --top-k alone. */
function samplingOf({ temperature, topP, topK }: GenerateFlags): Sampling {
  const chosen = temperature ?? (topP === undefined && topK === undefined ? 0 : 1);
  if (typeof chosen !== "number" || !(chosen >= 0) || chosen > 100)
    throw new RequestError("cli.flag", `--temperature is ${chosen}`, "give it a number from 0 (the likeliest token) on");
  const most = topP ?? 1;
  if (typeof most !== "number" || !(most > 0 && most <= 1))
    throw new RequestError("cli.flag", `--top-p is ${most}`, "give it a number above 0, up to 1");
  return { temperature: chosen, topP: most, topK: wholeNumber("top-k", topK ?? 0, 0) };
}

/** Tokens that may follow: as many as wanted, or as a known answer has, within the model's positions. */
function limitOf({ spec, questions }: GenerateRequest, i: number, wanted: number): number {
  const { ids, expected, place } = questions[i]!;
  const left = spec.maxPositions - ids.length;
  if (ids.length === 0 || left < 1)
    throw new RequestError(
      "generate.length",
      ids.length === 0
        ? `${place}: the prompt has no token`
        : `${place}: the prompt has ${ids.length} tokens, the base model ${spec.maxPositions} positions`,
      "give it another prompt",
    );
  return Math.min(left, Math.max(wanted, expected?.length ?? 0));
}

function summary({ answers }: Printer, seconds: number): string {
  const tokens = answers.reduce((all, { ids }) => all + ids.length, 0);
  const known = answers.filter((answer) => isExact(answer) !== null);
  const exactly = [...Map.groupBy(known, ({ question }) => question.name)].map(([name, of]) => {
    return `${name} ${of.filter((answer) => isExact(answer)).length} of ${of.length}`;
  });
  const speed = `${count(tokens)} tokens in ${duration(seconds)}, ${(tokens / seconds).toFixed(1)} tokens/s`;
  return exactly.length === 0 ? speed : `${speed}; exactly right: ${exactly.join(", ")}`;
}

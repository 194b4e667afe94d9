// Rewards of answers: a program of the recipe reads them, a JSON object a line, and prints a number for each; an address gets
// the same as a JSON list, and answers with a list of numbers. One that fails is asked again. A grader is computed here.

import { basename } from "node:path";
import * as v from "valibot";
import { onAbort } from "../../base/abort.ts";
import { MOST_TIMER_MS, now, sleep } from "../../base/clock.ts";
import { MloraError, RequestError, RunError, textOf } from "../../base/errors.ts";
import { count, counted } from "../../base/units.ts";
import { endWithin, programFault, startProgram } from "../../cluster/spawn.ts";
import { parseOwnJson, stringifyJson } from "../../data/json.ts";
import { columnAt, columnsOf, type Grader, gradesOf, TooLong } from "../../objectives/graders.ts";
import { rewardsOf } from "../../objectives/grpo.ts";
import { rolloutsOf } from "../../objectives/registry.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";
import type { Row } from "../../schedule/pack.ts";
import { ask, shown } from "../../sources/http.ts";

export { columnAt, columnsOf, GRADERS, type Grader, TooLong } from "../../objectives/graders.ts";
export { rewardSource } from "../../objectives/grpo.ts";

/** The grades of an answer to a row; `item` as parseJson makes it, so that its numbers keep their digits. */
export const gradesFor = (grader: Grader, of: { readonly item: unknown; readonly output: string }) =>
  gradesOf(grader, { ...of, jsonOf: (value) => stringifyJson(value)! });

export type NamedReward = ReturnType<typeof rewardsOf>[number];

/** What a reward is asked of: the prompt as the model reads it, the answer, and the row with all its columns, as JSON. */
export type Asked = { readonly prompt: string; readonly completion: string; readonly columns: string };

/** For one call, where the recipe says nothing. */
const SECONDS = 600;
/** Calls of one reward for the same answers, and the wait before the second in ms; each further wait is four times as long. */
const [ATTEMPTS, WAIT_MS] = [3, 500];
/** Interval at which this process does its other work, in ms. */
const LOOK_MS = 20;
/** Characters of output for each answer, at most. */
const MOST_CHARACTERS = 64;

/** null: it says nothing of this answer. */
const value = v.nullable(v.pipe(v.number(), v.finite()));

/**
 * Throws a RequestError where a program is not there, `reward.command`, or two rewards have one name, `reward.name`.
 */
export function checkRewards({ adapters }: Pick<Recipe, "adapters">): void {
  for (const { name, objective } of adapters) {
    const rollouts = rolloutsOf(objective);
    if (!rollouts) continue;
    const rewards = rewardsOf(rollouts);
    const twice = rewards.find((of, i) => rewards.findIndex((other) => other.name === of.name) !== i);
    if (twice)
      throw new RequestError(
        "reward.name",
        `adapter '${name}': two rewards are called '${twice.name}'`,
        "give each its own name",
      );
    for (const reward of rewards) checkReward(reward, `adapter '${name}': reward`);
  }
}

/** `named`: what it is called. Throws a RequestError, `reward.command`, where its program is not there. */
export function checkReward(reward: Pick<NamedReward, never>, named: string): void {
  const { command } = reward as { readonly command?: readonly string[] };
  const fault = command ? programFault(command[0]!) : null;
  if (fault !== null) throw new RequestError("reward.command", `${named}.command: ${fault.message}`, fault.hint);
}

/** Throws a RequestError, `reward.column`, where a row lacks what a grader reads. */
export function checkGraded({ name, objective }: Pick<AdapterRecipe, "name" | "objective">, rows: readonly Row[]): void {
  const rollouts = rolloutsOf(objective);
  const graders = rollouts ? rewardsOf(rollouts).flatMap((reward) => ("grader" in reward ? [reward.grader] : [])) : [];
  const columns = [...new Set(graders.flatMap(columnsOf))];
  if (columns.length === 0) return;
  for (const [i, row] of rows.entries()) {
    const item = parseOwnJson(row.columns!);
    const lacking = columns.find((path) => columnAt(item, path) === undefined);
    if (lacking !== undefined)
      throw new RequestError(
        "reward.column",
        `adapter '${name}': training row ${i + 1} has no '${lacking}', which its grader reads`,
        "add the column, or change the grader",
      );
  }
}

/**
 * By each reward, a number for each of the answers. All are asked at once; what fails is asked again, and told to `notice`.
 * Throws a RunError, `reward.failed`, when none is asked any more.
 */
export async function allRewards(
  rewards: readonly NamedReward[],
  asked: readonly Asked[],
  notice: (text: string) => void,
  signal: AbortSignal,
): Promise<(readonly (number | null)[])[]> {
  const over = new AbortController();
  const stop = AbortSignal.any([signal, over.signal]);
  const asking = rewards.map(async (reward) => {
    try {
      return await rewardsFrom(reward, asked, notice, stop);
    } catch (error) {
      over.abort(error); // nothing is learned of these answers: other programs end
      throw error;
    }
  });
  await Promise.allSettled(asking);
  return await Promise.all(asking);
}

async function rewardsFrom(
  reward: NamedReward,
  asked: readonly Asked[],
  notice: (text: string) => void,
  signal: AbortSignal,
): Promise<readonly (number | null)[]> {
  for (let attempt = 1; ; attempt++) {
    signal.throwIfAborted();
    try {
      if ("grader" in reward) return await ofGrader(reward, asked, signal);
      return await ("command" in reward ? ofProgram(reward, asked, signal) : ofAddress(reward, asked, signal));
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof MloraError)) throw error;
      const why = `the reward '${reward.name}' of ${counted(asked.length, "answer")} is missing: ${textOf(error)}`;
      if (attempt === ATTEMPTS)
        throw new RunError("reward.failed", why, "fix it, and give the same command again: the run continues from here");
      notice(`${why}; it is asked again`);
      await sleep(WAIT_MS * 4 ** (attempt - 1));
    }
  }
}

/** An answer as one JSON object on one line; `columns` is JSON already. */
const lineOf = ({ prompt, completion, columns }: Asked): string =>
  `{"prompt":${JSON.stringify(prompt)},"completion":${JSON.stringify(completion)},"row":${columns}}`;

const failed = (what: string) => new RunError("reward.answer", what);

/** Between two answers this process does its other work. */
async function ofGrader(
  { grader }: Extract<NamedReward, { readonly grader: unknown }>,
  asked: readonly Asked[],
  signal: AbortSignal,
): Promise<number[]> {
  const grades: number[] = [];
  let looked = now();
  for (const { completion, columns } of asked) {
    try {
      grades.push(gradesFor(grader, { item: parseOwnJson(columns), output: completion }).grade);
    } catch (error) {
      throw error instanceof TooLong ? failed(`the grader '${grader.name}' has ${error.message}`) : error;
    }
    if (!Number.isFinite(grades.at(-1))) throw failed(`the grader '${grader.name}' comes to ${grades.at(-1)}`);
    if (now() - looked < LOOK_MS) continue;
    await sleep(0);
    signal.throwIfAborted();
    looked = now();
  }
  return grades;
}

async function ofProgram(
  { command: [program, ...args], seconds = SECONDS }: Extract<NamedReward, { readonly command: unknown }>,
  asked: readonly Asked[],
  signal: AbortSignal,
): Promise<(number | null)[]> {
  const path = Bun.which(program!);
  if (path === null) throw failed(`${program} is not there any more`);
  await using child = startProgram(path, args, {
    name: basename(path),
    input: asked.map((of) => `${lineOf(of)}\n`).join(""),
    keepsOutput: MOST_CHARACTERS * asked.length,
  });
  using _stopped = onAbort(signal, () => child.kill());
  const { fault, stdout } = await endWithin(child, 1000 * seconds);
  if (fault !== null) throw failed(`${program} ${fault}`);
  const lines = stdout.split("\n").filter((line) => line.trim() !== "");
  if (lines.length !== asked.length)
    throw failed(
      `expected ${counted(asked.length, "line")} of ${program}, found ${count(lines.length)}: one number for each answer`,
    );
  return lines.map((line, i) => {
    const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), value), line);
    if (parsed.success) return parsed.output;
    throw failed(`line ${i + 1} of ${program}: expected a number or null, found ${JSON.stringify(line.slice(0, 100))}`);
  });
}

async function ofAddress(
  { url, seconds = SECONDS }: Extract<NamedReward, { readonly url: unknown }>,
  asked: readonly Asked[],
  signal: AbortSignal,
): Promise<(number | null)[]> {
  const body = `[${asked.map(lineOf).join(",")}]`;
  const headers = { "content-type": "application/json" };
  const headMs = Math.min(1000 * seconds, MOST_TIMER_MS);
  const late = AbortSignal.timeout(headMs);
  const options = { method: "POST", body, headers, headMs, signal: AbortSignal.any([signal, late]) } as const;
  const answer = async () => {
    const { response } = await ask(url, options);
    return { response, text: await textIn(response, MOST_CHARACTERS * (asked.length + 1)) };
  };
  const { response, text } = await answer().catch((error: unknown) => {
    if (late.aborted) throw failed(`${shown(url)} did not answer within ${seconds} s`);
    throw error instanceof MloraError ? error : failed(`${shown(url)}: its answer broke off: ${textOf(error)}`);
  });
  if (!response.ok) throw failed(`${shown(url)} answered ${response.status}: ${text.slice(0, 100)}`);
  const parsed = v.safeParse(v.pipe(v.string(), v.parseJson(), v.array(v.unknown())), text);
  if (!parsed.success) throw failed(`${shown(url)}: expected a JSON list, found ${JSON.stringify(text.slice(0, 100))}`);
  const { output: found } = parsed;
  if (found.length !== asked.length) throw failed(`${shown(url)}: expected ${asked.length} rewards, found ${found.length}`);
  return found.map((one, i) => {
    if (v.is(value, one)) return one;
    throw failed(`${shown(url)}: expected a number or null as reward ${i + 1}, found ${JSON.stringify(one)?.slice(0, 100)}`);
  });
}

/** The beginning of an answer, of about as many characters: one without an end is not read on. */
async function textIn(response: Response, most: number): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of response.body ?? []) {
    text += decoder.decode(bytes, { stream: true });
    if (text.length > most) break;
  }
  return text;
}

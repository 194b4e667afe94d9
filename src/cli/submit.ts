// `mlora submit RECIPE`: the adapters of a recipe as jobs of a server, with the same bytes as `mlora run` comes to.

import { statSync } from "node:fs";
import { RequestError } from "../base/errors.ts";
import { writeStderr, writeStdout } from "../base/terminal.ts";
import { shortPath } from "../base/units.ts";
import { loadRecipe } from "../recipe/load.ts";
import type { AdapterRecipe, Recipe } from "../recipe/recipe.ts";
import { adapterTable } from "../recipe/resolve.ts";
import { watchJobs } from "./jobs.ts";
import { Named, ServerClient, type ServerFlags } from "./server-client.ts";

export type SubmitFlags = ServerFlags & { readonly watch?: boolean };

/** Sends the rows of all adapters, and makes a job of each. Throws RequestErrors before anything is sent. */
export async function submit(path: string, flags: SubmitFlags): Promise<void> {
  const server = new ServerClient(flags);
  const recipe = loadRecipe(path);
  const bodies = recipe.adapters.map((adapter) => ({ adapter, table: tableOf(adapter) }));
  const sent = new Map<string, string>();
  const idsOf = async (files: readonly string[]): Promise<string[]> => {
    const ids: string[] = [];
    for (const file of files) {
      if (!sent.has(file)) sent.set(file, await server.upload(file));
      ids.push(sent.get(file)!);
    }
    return ids;
  };
  const jobs: string[] = [];
  for (const { adapter, table } of bodies) {
    const files = { train: await idsOf(adapter.train), eval: await idsOf(adapter.eval) };
    const { id } = await server.json("/v1/fine_tuning/recipe_jobs", Named, {
      ...{ name: adapter.name, adapter: table, ...files, ...numbersOf(recipe) },
    });
    writeStdout(`${adapter.name}: ${id}\n`);
    jobs.push(id);
  }
  if (flags.watch) await watchJobs(server, jobs);
}

/** What decides numbers and is not the adapter's. */
const numbersOf = ({ model, run }: Recipe) => ({
  ...{ precision: model.precision, tokens_per_microbatch: run.tokensPerMicrobatch },
});

/**
 * Graders are the recipe's; of a program or an address only the name is sent, by which the server may have one of its own.
 * Throws a RequestError, `submit.reward`, where there is no name.
 */
function rewardsAtServer({ name }: AdapterRecipe, { objective }: { readonly objective?: unknown }): object {
  if (typeof objective !== "object" || objective === null || !("reward" in objective)) return {};
  const given = [objective.reward].flat() as readonly Readonly<Record<string, unknown>>[];
  const sent = given.map((reward) => {
    if ("grader" in reward) return reward;
    if (reward["name"] === undefined)
      throw new RequestError(
        "submit.reward",
        `adapter '${name}': a reward is a program or an address, which a server does not start or ask for a client`,
        "give it the `name` of one that the server has (serve.toml, [rewards.NAME]), or use a grader",
      );
    writeStderr(`${name}: the reward '${reward["name"]}' is the server's own of that name\n`);
    return { name: reward["name"], ...(reward["weight"] === undefined ? {} : { weight: reward["weight"] }) };
  });
  return { objective: { ...objective, reward: sent.length === 1 ? sent[0] : sent } };
}

/** The adapter's keys, without its files. Throws a RequestError, `submit.data`, where these cannot be sent. */
function tableOf(adapter: AdapterRecipe): object {
  const { data: _, name: __, ...own } = adapterTable(adapter);
  const table = { ...own, ...rewardsAtServer(adapter, own) };
  const wrong = (what: string, hint: string) => new RequestError("submit.data", `adapter '${adapter.name}': ${what}`, hint);
  if (adapter.mix !== null || adapter.mostRows !== null)
    throw wrong("mixtures and parts of files are not submitted", "leave weight, rows, stop and shares out, or use mlora run");
  for (const file of [...adapter.train, ...adapter.eval])
    if (!statSync(file, { throwIfNoEntry: false })?.isFile())
      throw wrong(`${shortPath(file)} is no file of this machine`, "name each file; addresses and patterns are not submitted");
  return { ...table, ...(adapter.evalSplit > 0 ? { data: { split: adapter.evalSplit } } : {}) };
}

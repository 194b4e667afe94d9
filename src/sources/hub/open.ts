// Data sets and models by their names on a hub: the files that they stand for, in the cache.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { type HubName, hubText, parseHub } from "../../base/source-name.ts";
import type { DataFile } from "../../data/data-file.ts";
import type { Opening } from "../open.ts";
import { type OpenRepo, openRepo } from "./repo.ts";
import { matching, splitFiles } from "./splits.ts";

const CARD = "README.md";

function parsed(name: string, kind: HubName["kind"], example: string): HubName {
  const hub = parseHub(name);
  if (hub === null || hub.kind !== kind)
    throw new RequestError("hub.name", `${name} names no ${kind === "models" ? "model" : "data set"}`, `expected ${example}`);
  return hub;
}

/** The files of a data set's split, or those that are named. */
export async function hubFiles(name: string, opening: Opening): Promise<readonly DataFile[]> {
  const of = parsed(name, "datasets", "hf://datasets/ORG/NAME, with @REVISION, /FILE or ?config=CONFIG&split=SPLIT");
  const repo = await openRepo(of, opening);
  const paths = of.path === "" ? await splitOf(repo, of) : matching(repo.files, of.path);
  if (paths.length === 0)
    throw new RequestError("hub.file", `the ${repo.name} has no file ${of.path} at ${of.revision}`, "name a file that it has");
  await repo.fetch(paths);
  const own = { ...of, config: null, split: null };
  return paths.map((path) => ({ name: hubText({ ...own, path }), path: join(repo.folder, path) }));
}

async function splitOf(repo: OpenRepo, { config, split }: HubName): Promise<string[]> {
  const hasCard = repo.files.includes(CARD);
  if (hasCard) await repo.fetch([CARD]);
  return splitFiles(repo.name, repo.files, hasCard ? readFileSync(join(repo.folder, CARD), "utf8") : null, { config, split });
}

const INDEX = "model.safetensors.index.json";
const WEIGHTS = "model.safetensors";
/** Of a model's folder: configuration, tokenizer and templates. */
const SETTINGS = /^([^/]*\.(json|jinja|txt|model)|additional_chat_templates\/[^/]*\.jinja)$/;
const FOREIGN = /^(consolidated|params|adapter_)/;

/** The folder of a model, or of a GGUF file that is named the path of that. */
export async function hubModel(name: string, opening: Opening): Promise<string> {
  const of = parsed(name, "models", "hf://ORG/NAME, with @REVISION or /FILE.gguf");
  const repo = await openRepo(of, opening);
  const settings = repo.files.filter((path) => SETTINGS.test(path) && !FOREIGN.test(path) && path !== INDEX);
  const weights = of.path === "" ? await weightsOf(repo) : [of.path];
  await repo.fetch([...settings, ...weights]);
  return of.path === "" ? repo.folder : join(repo.folder, of.path);
}

async function weightsOf(repo: OpenRepo): Promise<string[]> {
  if (repo.files.includes(INDEX)) {
    await repo.fetch([INDEX]);
    const { weight_map } = JSON.parse(readFileSync(join(repo.folder, INDEX), "utf8")) as { weight_map: Record<string, string> };
    return [INDEX, ...new Set(Object.values(weight_map))];
  }
  if (repo.files.includes(WEIGHTS)) return [WEIGHTS];
  const gguf = repo.files.filter((path) => path.endsWith(".gguf"));
  throw new RequestError(
    "hub.model",
    `the ${repo.name} has no safetensors`,
    gguf.length > 0 ? `name one of its GGUF files: ${gguf[0]}` : "only safetensors and GGUF files are read",
  );
}

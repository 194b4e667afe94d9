// A saved adapter goes to a hub, with a card: its files alone, of which the config names the base model as the hub does.

import { existsSync, readFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { isAddress, parseHub } from "../../base/source-name.ts";
import { type JsonObject, jsonLike, readJsonObject } from "../../files/json.ts";
import { readRecord } from "../../files/record.ts";
import { methodIn } from "../../methods/registry.ts";
import { loadRecipe } from "../../recipe/load.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import { shown } from "../../sources/http.ts";
import { type PushedFile, pushFiles } from "../../sources/hub/push.ts";
import { hubSettings } from "../../sources/hub/settings.ts";
import { isFile, isFolder } from "../preparation/adapters.ts";
import { RUN_RECIPE, withAdded } from "../run/folder.ts";
import { type Card, cardText } from "./model-card.ts";

export type PushOptions = {
  /** "owner/name" */
  readonly repo: string;
  /** The base model's name on the hub; null: as far as the adapter's own config or the base's folder tells. */
  readonly base: string | null;
  readonly isPublic: boolean;
  readonly revision: string;
};

/** What goes to the hub: nothing else does. */
export type PreparedPush = {
  readonly repo: string;
  readonly endpoint: string;
  readonly card: string;
  readonly files: readonly PushedFile[];
  readonly isPublic: boolean;
  /** Sends it. Throws RequestErrors and RunErrors. */
  readonly push: () => Promise<{ readonly url: string; readonly commit: string }>;
};

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const CARD = "README.md";
const NAME = /^[\w.-]+\/[\w.-]+$/;

/** Reads the adapter in `folder`, and writes its card. Throws a RequestError, `push.*`. */
export function preparePush(folder: string, { repo, base: named, isPublic, revision }: PushOptions): PreparedPush {
  const wrong = (code: string, what: string, hint: string) => new RequestError(`push.${code}`, what, hint);
  if (!NAME.test(repo)) throw wrong("repo", `'${repo}' is no name of a repository`, "name it as owner/name");
  if (named !== null && !NAME.test(named)) throw wrong("base", `'${named}' is no name of a model`, "name it as owner/name");
  const whole = resolve(folder);
  for (const file of [CONFIG, WEIGHTS])
    if (!isFile(join(whole, file)))
      throw wrong(
        "adapter",
        `${whole} ${isFolder(whole) ? `has no ${file}` : "is no folder"}`,
        "name the folder of one adapter",
      );
  const config = readJsonObject(join(whole, CONFIG), "peft.config");
  const written = `${config["base_model_name_or_path"] ?? ""}`;
  const base = named ?? hubName(written);
  if (base === null)
    throw wrong(
      "base",
      `${join(whole, CONFIG)} names ${written || "no base model"}, which is no name on a hub`,
      "give --base owner/name",
    );
  const hub = hubSettings();
  const card = cardText({ ...cardOf(whole, config, written), base, repo });
  const copy = jsonLike({ ...config, base_model_name_or_path: base }, readFileSync(join(whole, CONFIG), "utf8"));
  const files: readonly PushedFile[] = [
    { path: CARD, bytes: new Blob([card]) },
    { path: CONFIG, bytes: new Blob([copy]) },
    { path: WEIGHTS, bytes: Bun.file(join(whole, WEIGHTS)) },
  ];
  const push = () => {
    if (hub.offline) throw wrong("offline", "HF_HUB_OFFLINE is set", "unset it to push");
    if (hub.token === null)
      throw wrong("token", "there is no token for the hub", "set HF_TOKEN to one that may write, or call hf auth login");
    return pushFiles({ hub, repo, files, isPrivate: !isPublic, revision, summary: `Upload ${basename(whole)} with mlora` });
  };
  return { repo, endpoint: hub.endpoint, card, files, isPublic, push };
}

/** The name of a model on the hub, by the path that an adapter names; null where nothing tells. */
function hubName(path: string): string | null {
  const [, owner, name] = /models--([\w.-]+?)--([\w.-]+)\/snapshots\//.exec(path) ?? [];
  if (owner !== undefined) return `${owner}/${name}`;
  if (NAME.test(path) && !existsSync(path)) return path;
  const config = join(path, "config.json");
  const own = path !== "" && isFile(config) ? readJsonObject(config, "model.config")["_name_or_path"] : null;
  return typeof own === "string" && NAME.test(own) && !existsSync(own) ? own : null;
}

/** Keys that say nothing to others, or name what is here: programs and folders. */
const LEFT_OUT = ["name", "data", "from", "seed", "priority", "metrics"];

/** An adapter's keys as others may read them: of a path its last part, and no program or address of rewards. */
function settingsOf(table: JsonObject): JsonObject {
  const kept = Object.fromEntries(Object.entries(table).filter(([key]) => !LEFT_OUT.includes(key)));
  const { chat_template: template, objective } = kept;
  return {
    ...kept,
    ...(typeof template === "string" ? { chat_template: basename(template) } : {}),
    ...(typeof objective === "object" ? { objective: shownObjective(objective as JsonObject) } : {}),
  };
}

function shownObjective({ reward: _, ...objective }: JsonObject): JsonObject {
  const { reference } = objective;
  return typeof reference === "string" ? { ...objective, reference: basename(reference) } : objective;
}

/** A source of rows as others may read it, and the data set on the hub that it is. */
function sourceOf(name: string): { readonly text: string; readonly dataset: string | null } {
  const hub = parseHub(name);
  if (hub !== null) return { text: hub.repo, dataset: hub.kind === "datasets" ? hub.repo : null };
  return { text: isAddress(name) ? shown(name) : basename(name), dataset: null };
}

function cardOf(folder: string, config: JsonObject, base: string): Omit<Card, "base" | "repo"> {
  const run = dirname(folder);
  const name = basename(folder);
  const recipe = join(run, RUN_RECIPE);
  const adapters = isFile(recipe) ? withAdded(loadRecipe(recipe, { output: run })).adapters : [];
  const own = adapters.find((of) => of.name === name);
  const sources = (own?.train ?? []).map(sourceOf);
  const more = join(folder, CARD);
  return {
    name,
    license: licenseOf(base),
    method: methodIn(config) ?? "lora",
    outcome: readRecord(run).get(name) ?? null,
    settings: own ? settingsOf(adapterTable(own)) : null,
    data: sources.map(({ text }) => text),
    datasets: sources.flatMap(({ dataset }) => dataset ?? []),
    more: isFile(more) ? readFileSync(more, "utf8") : null,
  };
}

/** What the base model's own card says, where it lies next to its weights. */
function licenseOf(base: string): string | null {
  const card = join(base, CARD);
  if (base === "" || !isFile(card)) return null;
  const [front] = /^---\n[\s\S]*?\n---/.exec(readFileSync(card, "utf8")) ?? [];
  return /^license:\s*["']?([\w.-]+)/m.exec(front ?? "")?.[1] ?? null;
}

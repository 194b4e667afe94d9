// Which files of a data set's repository are a split, by the rules of the `datasets` library: what the card says, else the
// names of files and folders.

import * as v from "valibot";
import { RequestError, textOf } from "../../base/errors.ts";
import { FORMS, formOf } from "../../data/data-file.ts";
import { byName } from "../local.ts";

export type Split = { readonly config: string | null; readonly split: string | null };

const text = v.union([v.string(), v.number(), v.boolean()]);
const patterns = v.union([text, v.array(text)]);
const card = v.looseObject({
  configs: v.optional(
    v.array(
      v.looseObject({
        config_name: v.optional(v.string(), "default"),
        default: v.optional(v.boolean(), false),
        data_dir: v.optional(v.string()),
        data_files: v.optional(
          v.union([patterns, v.array(v.looseObject({ split: text, path: patterns })), v.record(v.string(), patterns)]),
        ),
      }),
    ),
    [],
  ),
});
type Config = v.InferOutput<typeof card>["configs"][number];

/** The patterns of each split, in order. */
type Splits = ReadonlyMap<string, readonly string[]>;

/** The split's files, in the order in which they are read; `readme` is the card's text. Throws a RequestError, `hub.split`. */
export function splitFiles(name: string, all: readonly string[], readme: string | null, { config, split }: Split): string[] {
  const files = all.filter((path) => FORMS.includes(formOf(path)) && !IGNORED.includes(path.split("/").at(-1)!)).sort(byName);
  const configs = configsOf(name, readme);
  const { splits, within } = splitsOf(name, files, configs, config);
  const wanted = split ?? "train";
  const found = splits.get(wanted);
  if (!found) throw unknown(name, "split", wanted, [...splits.keys()], files);
  const chosen = [...new Set(found.flatMap((pattern) => matching(within, pattern)))];
  if (chosen.length === 0) throw unknown(name, "split", wanted, [], files);
  const forms = [...new Set(chosen.map(formOf))];
  if (forms.length > 1)
    throw new RequestError(
      "hub.split",
      `the ${name} has ${forms.join(" and ")} files in split '${wanted}'`,
      "name the files: hf://datasets/ORG/NAME/*.parquet",
    );
  return chosen;
}

/** Files of a repository that match a pattern, sorted. Hidden files and folders are left out, unless it names them. */
export function matching(files: readonly string[], pattern: string): string[] {
  const glob = new Bun.Glob(pattern.replace(/^\.\//, ""));
  const isHidden = (path: string) => /(^|\/)(\.|__)/.test(path);
  return files.filter((path) => path === pattern || (glob.match(path) && (!isHidden(path) || isHidden(pattern)))).sort(byName);
}

const IGNORED = ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

function configsOf(name: string, readme: string | null): readonly Config[] {
  const [, yaml] = /^---\r?\n([\s\S]*?)\r?\n---/.exec(readme ?? "") ?? [];
  if (yaml === undefined) return [];
  try {
    return v.parse(card, Bun.YAML.parse(yaml) ?? {}).configs;
  } catch (error) {
    throw new RequestError(
      "hub.card",
      `the card of the ${name} cannot be read: ${textOf(error)}`,
      "name the files: hf://datasets/ORG/NAME/*.parquet",
    );
  }
}

/** The splits of a configuration, and the files that they are among. */
function splitsOf(
  name: string,
  files: readonly string[],
  configs: readonly Config[],
  wanted: string | null,
): { readonly splits: Splits; readonly within: readonly string[] } {
  const found = configs.length === 0 ? null : chosen(name, configs, wanted, files);
  if (found === null) {
    const folders = [...new Set(files.map((path) => path.split("/")[0]!))];
    if (wanted === null || (wanted === "default" && !folders.includes(wanted)))
      return { splits: splitsByName(files), within: files };
    const inside = files.filter((path) => path.startsWith(`${wanted}/`));
    if (inside.length === 0) throw unknown(name, "configuration", wanted, [], files);
    return { splits: splitsByName(inside, `${wanted}/`), within: inside };
  }
  const { data_files: given, data_dir: folder } = found;
  const prefix = folder === undefined ? "" : `${folder.replace(/^\.?\/|\/$/g, "")}/`;
  const within = files.filter((path) => path.startsWith(prefix));
  if (given === undefined) return { splits: splitsByName(within, prefix), within };
  return { splits: new Map(givenSplits(given).map(([split, list]) => [split, list.map((one) => prefix + one)])), within };
}

function chosen(name: string, configs: readonly Config[], wanted: string | null, files: readonly string[]): Config {
  const names = configs.map(({ config_name }) => config_name);
  const isDefault = ({ config_name, default: own }: Config) => own || config_name === "default";
  const found =
    wanted === null
      ? (configs.find(isDefault) ?? (configs.length === 1 ? configs[0] : undefined))
      : configs.find(({ config_name }) => config_name === wanted);
  if (found) return found;
  if (wanted !== null) throw unknown(name, "configuration", wanted, names, files);
  throw new RequestError(
    "hub.split",
    `the ${name} has the configurations ${names.join(", ")}`,
    `choose one: config = "${names[0]}"`,
  );
}

function givenSplits(given: NonNullable<Config["data_files"]>): (readonly [string, readonly string[]])[] {
  const list = (value: v.InferOutput<typeof patterns>) => [value].flat().map(String);
  if (!Array.isArray(given)) {
    if (typeof given !== "object") return [["train", list(given)]];
    return Object.entries(given).map(([split, value]) => [split, list(value)]);
  }
  const tables = given.filter((one): one is { split: string; path: string[] } => typeof one === "object");
  return tables.length === 0 ? [["train", given.map(String)]] : tables.map(({ split, path }) => [String(split), list(path)]);
}

const SHARD = /^data\/([\w.-]+?)-\d{5}-of-\d{5}[^/]*\.[^/]*$/;
const KEYWORDS = {
  train: ["train", "training"],
  validation: ["validation", "valid", "dev", "val"],
  test: ["test", "testing", "eval", "evaluation"],
};
const SEPARATOR = "-._ 0-9";
const IN_FOLDER = (word: string) => [
  `**/${word}/**`,
  `**/${word}[${SEPARATOR}]*/**`,
  `**/*[${SEPARATOR}]${word}/**`,
  `**/*[${SEPARATOR}]${word}[${SEPARATOR}]*/**`,
];
const IN_NAME = (word: string) => [`**/${word}[${SEPARATOR}]*`, `**/*[${SEPARATOR}]${word}[${SEPARATOR}]*`];

/** Splits that the names of files and folders tell: of shards, of folders, of files; else all files are for training. */
function splitsByName(files: readonly string[], prefix = ""): Splits {
  const own = files.map((path) => path.slice(prefix.length));
  const shards = [...new Set(own.flatMap((path) => SHARD.exec(path)?.[1] ?? []))].sort(byName);
  if (shards.length > 0) {
    const five = "[0-9][0-9][0-9][0-9][0-9]";
    return new Map(shards.map((split) => [split, [`${prefix}data/${split}-${five}-of-${five}*.*`]]));
  }
  for (const patternsOf of [IN_FOLDER, IN_NAME]) {
    const all = Object.entries(KEYWORDS).map(
      ([split, words]) => [split, words.flatMap(patternsOf).map((pattern) => prefix + pattern)] as const,
    );
    const found = all.filter(([, list]) => list.some((pattern) => matching(files, pattern).length > 0));
    if (found.length > 0) return new Map(found);
  }
  return new Map(files.length > 0 ? [["train", [`${prefix}**`]]] : []);
}

function unknown(name: string, what: string, wanted: string, has: readonly string[], files: readonly string[]): RequestError {
  if (files.length === 0)
    return new RequestError(
      "hub.split",
      `the ${name} has no files of rows (${FORMS.join(", ")})`,
      'the hub may have made some: revision = "refs/convert/parquet"',
    );
  const found =
    has.length > 0
      ? `it has ${has.join(", ")}`
      : `it has the files ${files.slice(0, 5).join(", ")}${files.length > 5 ? ", ..." : ""}`;
  return new RequestError("hub.split", `the ${name} has no ${what} '${wanted}'`, found);
}

// `mlora export`: an adapter and its base model become one Hugging Face model, for programs that know of no adapters, or a
// GGUF, for llama.cpp.

import { basename, join } from "node:path";
import { RequestError } from "../base/errors.ts";
import { ownPlace } from "../base/source-name.ts";
import { jsonText, writeStderr, writeStdout } from "../base/terminal.ts";
import { count, counted, formatBytes, shortPath } from "../base/units.ts";
import { type ExportedGguf, exportGguf, GGUF_CONTENTS } from "../session/publishing/export-gguf.ts";
import {
  adaptersOfRun,
  EXPORT_DTYPES,
  type ExportedModel,
  exportModel,
  exportModels,
} from "../session/publishing/export-model.ts";
import { oneOf } from "./flags.ts";

export type ExportFlags = {
  readonly base?: unknown;
  readonly output?: unknown;
  readonly dtype?: unknown;
  readonly shard?: unknown;
  readonly gguf?: unknown;
  readonly all?: boolean;
  readonly json?: boolean;
};

const SHARD = "5GB"; // as transformers divides a model

/** Merges the adapter in `folder`, or all of a run's, or writes them as GGUFs, and says what came of it. */
export function exportAdapter(folder: string, flags: ExportFlags): void {
  const { base, output, dtype, shard, gguf, all = false, json = false } = flags;
  if (output === undefined)
    throw new RequestError("cli.flag", "--output is missing", "say where the merged model goes: --output FOLDER");
  const print = (line: string) => writeStderr(`${line}\n`);
  ownPlace("cli.flag", "output", `${output}`);
  const asked = { base: base === undefined ? null : `${base}`, print };
  const folders = all ? adaptersOfRun(folder, print) : [folder];
  const show = (made: readonly (ExportedModel | ExportedGguf)[]) => {
    const text = made.map((one) => ("gguf" in one ? ggufText(one) : textOf(one))).join("\n");
    writeStdout(`${json ? jsonText(all ? made : made[0], 2) : text}\n`);
  };
  if (gguf !== undefined) {
    const wrong = dtype === undefined ? (shard === undefined ? null : "shard") : "dtype";
    if (wrong)
      throw new RequestError(
        "cli.flag",
        `--${wrong} is of a Hugging Face folder, and --gguf asks for a file`,
        `leave out --${wrong}`,
      );
    const contents = oneOf("gguf", `${gguf}`, GGUF_CONTENTS);
    const to = (of: string) => (all ? join(`${output}`, `${basename(of)}.gguf`) : `${output}`);
    show(folders.map((of) => exportGguf(of, { ...asked, output: to(of), contents })));
    return;
  }
  const options = {
    ...asked,
    output: `${output}`,
    dtype: oneOf("dtype", `${dtype ?? "bf16"}`, EXPORT_DTYPES),
    mostBytes: bytesIn(`${shard ?? SHARD}`),
  };
  show(all ? exportModels(folders, options) : [exportModel(folder, options)]);
}

const textOf = (made: ExportedModel): string =>
  `merged ${count(made.merged_tensors)} of ${counted(made.tensors, "tensor")} (${placesText(made)}) into ` +
  `${shortPath(made.output)}: ${counted(made.parameters, "parameter")} in ${made.dtype}, ${formatBytes(made.bytes)}, ` +
  counted(made.files.length, "file");

const ggufText = (made: ExportedGguf): string =>
  `wrote ${shortPath(made.output)}: ${made.gguf === "adapter" ? "the adapter alone" : `the merged model in ${made.gguf}`} ` +
  `(${placesText(made)}), ${counted(made.tensors, "tensor")}, ${counted(made.parameters, "value")}, ${formatBytes(made.bytes)}`;

/** "rank 16, scale 2"; of an adapter with several of them, the least and the largest. */
function placesText({ rank, scale, places }: Pick<ExportedModel, "rank" | "scale" | "places">): string {
  const span = (table: readonly (readonly number[])[], of: number) => {
    const values = places ? table.flat().filter((_, i) => places.ranks.flat()[i]! > 0) : [of];
    const [least, most] = [Math.min(...values), Math.max(...values)];
    return least === most ? `${most}` : `${least} to ${most}`;
  };
  return `rank ${span(places?.ranks ?? [], rank)}, scale ${span(places?.scales ?? [], scale)}`;
}

const UNITS: Readonly<Record<string, number>> = {
  ...{ B: 1, KB: 1e3, MB: 1e6, GB: 1e9 },
  ...{ KIB: 2 ** 10, MIB: 2 ** 20, GIB: 2 ** 30 },
};

/** "5GB" */
function bytesIn(text: string): number {
  const [, number, unit = "B"] = /^(\d+(?:\.\d+)?)\s*([kmg]?i?b)?$/i.exec(text) ?? [];
  const bytes = number === undefined ? 0 : Math.floor(Number(number) * (UNITS[unit.toUpperCase()] ?? 0));
  if (bytes < 1) throw new RequestError("cli.flag", `--shard is '${text}'`, "give it a size: --shard 5GB, --shard 500MB");
  return bytes;
}

// Where the tokenizer of a base model lies.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { cacheFolders, ownFolder } from "../base/cache.ts";
import { RequestError, RunError, textOf } from "../base/errors.ts";
import { checkTokenizer } from "./gguf/tokenizer.ts";
import { type TokenizerFiles, tokenizerOfGguf } from "./gguf/tokenizer-json.ts";
import { modelPlace } from "./modelpath.ts";

const SHELF = "tokenizers";
const FILE = "tokenizer.json";

/**
 * The folder of the model's tokenizer: next to a GGUF, which it must fit, or where there is none, made of what the GGUF lists,
 * in the cache folder. Throws a RequestError, `model.tokenizer` or `model.folder`, or a RunError.
 */
export function tokenizerFolder(path: string): string {
  const { folder, gguf } = modelPlace(path);
  if (gguf === null) return folder;
  if (existsSync(join(folder, FILE))) {
    checkTokenizer(gguf, folder);
    return folder;
  }
  const own = tokenizerOfGguf(gguf);
  if (own !== null) return written(own);
  throw new RequestError(
    "model.tokenizer",
    `${join(folder, FILE)}: no such file`,
    "the tokenizer in this GGUF is of a kind that is not read: put tokenizer.json and tokenizer_config.json of the model that it was made from next to it",
  );
}

/** Writes a tokenizer's files into a folder that is named by their content. */
function written(files: TokenizerFiles): string {
  const texts = Object.entries(files).map(([name, content]) => [name, JSON.stringify(content)] as const);
  const hash = new Bun.CryptoHasher("sha256")
    .update(texts.map(([, text]) => text).join())
    .digest("hex")
    .slice(0, 32);
  const faults: string[] = [];
  for (const cache of cacheFolders())
    try {
      const folder = ownFolder(ownFolder(cache, SHELF), hash);
      for (const [name, text] of texts) {
        const path = join(folder, name);
        if (!existsSync(path) || readFileSync(path, "utf8") !== text) writeFileAtomic(path, text, 0o600);
      }
      return folder;
    } catch (error) {
      faults.push(`${cache}: ${textOf(error)}`);
    }
  throw new RunError(
    "cache.unusable",
    `no folder for a tokenizer: ${faults.join("; ")}`,
    "set MLORA_CACHE to a folder of your own",
  );
}

// A GGUF as a whole model: what its family reads as config.json.

import type { JsonObject } from "../json.ts";
import { type GgufConfig, ggufConfig } from "./config.ts";
import { openParts, wholeOf } from "./tensors.ts";

function read(path: string): GgufConfig {
  const files = openParts(path);
  try {
    return ggufConfig(wholeOf(files));
  } finally {
    for (const file of files) file[Symbol.dispose]();
  }
}

/** What config.json would say. Throws a RequestError, "gguf.*" or "model.*". */
export const configOfGguf = (path: string): JsonObject => read(path).config;

/** Keys of its architecture that are not read. */
export const unknownIn = (path: string): readonly string[] => read(path).unknown;

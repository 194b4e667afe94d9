// Where the tokenizer of a base model lies.

import { checkTokenizer } from "./gguf/tokenizer.ts";
import { modelPlace } from "./modelpath.ts";

/** The folder of the model's tokenizer, which fits a GGUF. Throws a RequestError, `model.tokenizer` or `model.folder`. */
export function tokenizerFolder(path: string): string {
  const { folder, gguf } = modelPlace(path);
  if (gguf !== null) checkTokenizer(gguf, folder);
  return folder;
}

// `mlora schema`: the recipe as a JSON schema, for editors.

import { writeStdout } from "../base/terminal.ts";
import { recipeSchema } from "../recipe/json-schema.ts";

export function schema(): void {
  writeStdout(`${JSON.stringify(recipeSchema(), null, 2)}\n`);
}

// `mlora schema`: the recipe as a JSON schema, for editors.

import { writeStdout } from "../base/terminal.ts";
import { editorSchema } from "../recipe/json-schema.ts";

/** Where the first line of a recipe has editors look for it. */
export const SCHEMA_FILE = "recipe.schema.json";

export const schemaText = (): string => `${JSON.stringify(editorSchema(), null, 2)}\n`;

export function schema(): void {
  writeStdout(schemaText());
}

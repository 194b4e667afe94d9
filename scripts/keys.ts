// Writes what follows from schemas: recipes/recipe.schema.json, and tables of all keys, of a recipe (docs/keys.md) and of a
// server (docs/serve-keys.md).
//
//   bun scripts/keys.ts

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { toJsonSchema } from "@valibot/to-json-schema";
import { code, editorSchema, type JsonSchema, recipeSchema, valuesOf } from "../src/recipe/json-schema.ts";
import { ServeTable } from "../src/serve/config.ts";

const ROOT = join(import.meta.dir, "..");

function tableOf({ properties, required = [] }: JsonSchema): string {
  const rows = Object.entries(properties!).map(([key, of]) => {
    const standard = required.includes(key) ? "required" : of.default === undefined ? "" : code(of.default);
    return `| \`${key}\` | ${valuesOf(of)} | ${standard} | ${of.description ?? ""} |`.replaceAll("||", "| |");
  });
  return ["| key | values | default | meaning |", "| --- | --- | --- | --- |", ...rows].join("\n");
}

/** docs/keys.md */
function keysPage(schema: JsonSchema): string {
  const { model, run, adapter } = schema.properties as Readonly<Record<"model" | "run" | "adapter", JsonSchema>>;
  return `# Keys of a recipe

Written by \`bun scripts/keys.ts\` from the schema that recipes are checked with; \`mlora schema\` prints that schema for editors.
A default that depends on something else is left out here, and told in docs/adapters.md and docs/runs.md.

## [model]

${tableOf(model)}

## [run]

${tableOf(run)}

## [[adapter]]

\`[defaults]\` takes the same keys, but \`name\` and \`sweep\`.

${tableOf(adapter.items as JsonSchema)}
`;
}

/** docs/serve-keys.md */
function serveKeysPage({ properties }: JsonSchema): string {
  const tables = Object.entries(properties!).filter(([name]) => !["adapter", "rewards"].includes(name));
  return `# Keys of serve.toml

Written by \`bun scripts/keys.ts\` from the schema that \`mlora serve --config\` checks a file with. Each table and each key may be left out.

${tables.map(([name, of]) => `## [${name}]\n\n${tableOf(of)}\n`).join("\n")}
## [rewards.NAME]

What adapters of recipes may learn from by this name ([rewards.md](rewards.md#at-a-server)): \`command\` or \`url\`, and \`seconds\`, as in a recipe.

## [adapter]

What the adapters of jobs are: the keys of a recipe's \`[defaults]\` ([keys.md](keys.md)), such as \`rank\`, \`targets\` and \`learning_rate\`, which is the rate of multiplier 1.
`;
}

/** The files, and what they hold. */
export function files(): ReadonlyMap<string, string> {
  const schema = recipeSchema();
  return new Map([
    ["recipes/recipe.schema.json", `${JSON.stringify(editorSchema(), null, 2)}\n`],
    ["docs/keys.md", keysPage(schema)],
    [
      "docs/serve-keys.md",
      serveKeysPage(toJsonSchema(ServeTable, { errorMode: "ignore", typeMode: "input" }) as unknown as JsonSchema),
    ],
  ]);
}

if (import.meta.main) for (const [path, text] of files()) writeFileSync(join(ROOT, path), text);

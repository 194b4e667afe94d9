// What a row and a recipe give to the chat template in addition to the turns: the tools that the model may call, and the
// template's own arguments.

import type { ChatVariables } from "./format.ts";
import { parseJson, stringifyJson } from "./json.ts";
import { clip, type Fields, RowFault, twiceIn } from "./jsonl.ts";

/** Names that a row cannot give a value: the template has them from elsewhere. */
const RESERVED = ["messages", "add_generation_prompt"];

/** A row's variables over the recipe's. Throws a RowFault. */
export function variablesOf(fields: Fields, recipe: ChatVariables): ChatVariables {
  const [tools, own] = [toolsOf(fields["tools"]), kwargsOf(fields["chat_template_kwargs"])];
  return tools === null && own === null ? recipe : { ...recipe, ...own, ...(tools === null ? {} : { tools }) };
}

/** A list of tools, or the JSON text of one; null for none, which an empty list says, too. */
function toolsOf(given: unknown): readonly unknown[] | null {
  if (given == null || given === "") return null;
  const wrong = () => new RowFault(`has ${clip(stringifyJson(given)!)} in 'tools', expected a list of tools, or its JSON text`);
  let tools: unknown = given;
  if (typeof given === "string")
    try {
      tools = parseJson(given);
    } catch {
      throw wrong();
    }
  const fault = typeof given === "string" ? twiceIn(given, tools) : null;
  if (fault !== null) throw new RowFault(fault);
  if (tools === null) return null;
  if (!Array.isArray(tools) || !tools.every((tool) => typeof tool === "object" && tool !== null && !Array.isArray(tool)))
    throw wrong();
  return tools.length === 0 ? null : tools;
}

function kwargsOf(given: unknown): ChatVariables | null {
  if (given == null) return null;
  if (typeof given !== "object" || Array.isArray(given))
    throw new RowFault(`has ${clip(stringifyJson(given)!)} in 'chat_template_kwargs', expected an object`);
  const reserved = Object.keys(given).find((name) => RESERVED.includes(name));
  if (reserved !== undefined) throw new RowFault(`has '${reserved}' in 'chat_template_kwargs', which is no argument`);
  return given as ChatVariables;
}

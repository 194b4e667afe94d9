// Tokens whose rows a recipe trains: texts become the ids that the base model's tokenizer gives them.

import { RequestError } from "../../base/errors.ts";
import type { ModelSpec } from "../../base/spec.ts";
import { counted } from "../../base/units.ts";
import type { Tokenizer } from "../../data/tokenizer.ts";
import type { AdapterRecipe, Recipe } from "../../recipe/recipe.ts";

type Tokens = readonly (string | number)[];
type Given = NonNullable<AdapterRecipe["trainableTokens"]>;
const isList = (given: Given): given is Tokens => Array.isArray(given);

/** Throws a RequestError, `plan.tokens`, for a text that is no single token. */
export function withTokenIds(recipe: Recipe, tokenizer: Tokenizer): Recipe {
  if (recipe.adapters.every(({ trainableTokens }) => trainableTokens === null)) return recipe;
  const adapters = recipe.adapters.map((adapter): AdapterRecipe => {
    const given = adapter.trainableTokens;
    if (given === null) return adapter;
    const idsOf = (tokens: Tokens) =>
      tokens.map((token) => (typeof token === "number" ? token : idOf(adapter, token, tokenizer)));
    const trainableTokens = isList(given)
      ? idsOf(given)
      : Object.fromEntries(Object.entries(given).map(([name, tokens]) => [name, idsOf(tokens)]));
    return { ...adapter, trainableTokens };
  });
  return { ...recipe, adapters };
}

function idOf({ name }: AdapterRecipe, text: string, tokenizer: Tokenizer): number {
  const ids = tokenizer.encode(text);
  if (ids.length === 1) return ids[0]!;
  throw new RequestError(
    "plan.tokens",
    `adapter '${name}': trainable_tokens has ${JSON.stringify(text)}, expected one token, found the ${counted(ids.length, "token")} ${ids.join(", ")}`,
    "add it to the tokenizer, resize the base model and save both (tokenizer.add_tokens, model.resize_token_embeddings), or name its tokens by their ids",
  );
}

/** Of tables that are not tied a list trains the embedding alone. */
export function tokenNotices({ adapters }: Recipe, { tiedEmbeddings }: ModelSpec): string[] {
  if (tiedEmbeddings) return [];
  const names = adapters.filter(({ trainableTokens: of }) => of !== null && isList(of)).map(({ name }) => name);
  if (names.length === 0) return [];
  return [
    `${names.join(", ")}: trainable_tokens is a list, which is of the embedding; the head's rows of these tokens stay as they are: ` +
      "name both to train both, { embed_tokens = [...], lm_head = [...] }",
  ];
}

// What an adapter of a recipe trains of the embedding and of the output head.

import { RequestError } from "../base/errors.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isAll, isNamed, isTargeted, patternValue } from "../base/targeting.ts";
import { count, counted } from "../base/units.ts";
import { tableModules } from "../families/tensors.ts";
import { isSvdInit } from "../methods/init.ts";
import { scaleOf } from "../methods/placement.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import { TABLE_KINDS, type Table, type TableKind, type Tables } from "../methods/tables.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";

type Named = Pick<AdapterRecipe, "name" | "targets" | "exclude" | "layers" | "method">;
type Ranks = Pick<AdapterRecipe, "rank" | "rankPattern" | "alpha" | "alphaPattern" | "rslora">;
type Training = Partial<Pick<AdapterRecipe, "trainableTokens" | "init" | "loraPlusRatio">>;
export type AskedTables = Named & Ranks & Training;

/** The head's logits of trained tokens are kept for each target of a chunk. */
const MOST_TOKENS = 4096;

const wrong = ({ name }: Pick<AdapterRecipe, "name">, what: string, hint: string) =>
  new RequestError("plan.targets", `adapter '${name}': ${what}`, hint);

/** The tables that the targets name, by kind, with their paths. */
export function namedTables(recipe: Named, spec: ModelSpec): readonly { readonly kind: TableKind; readonly path: string }[] {
  const modules = tableModules(spec);
  const { targets, exclude } = recipe;
  return TABLE_KINDS.flatMap((kind) => {
    const path = modules[kind];
    const isMeant = !isAll(targets) && isNamed(path, targets) && (exclude === null || !isNamed(path, exclude));
    if (!isMeant) return [];
    if (!isTargeted(recipe, -1, path))
      throw wrong(
        recipe,
        `layers leaves out ${path}, which its targets have, as in PEFT`,
        `name it by its whole path, "${path}", or leave layers out`,
      );
    return [{ kind, path }];
  });
}

/**
 * Products and rows of tokens as the recipe has them; null for none. Tokens that are still texts are left out. Throws a
 * RequestError, `plan.targets`, for what cannot be trained.
 */
export function placeTables(recipe: AskedTables, spec: ModelSpec): Tables | null {
  const { rank, rankPattern, alpha, alphaPattern, rslora, method } = recipe;
  const products = namedTables(recipe, spec).map(({ kind, path }): [TableKind, Table] => {
    const own = { rank: patternValue(rankPattern, path) ?? rank, alpha: patternValue(alphaPattern, path) ?? alpha };
    return [kind, { rank: own.rank, scale: scaleOf({ ...own, rslora, method }) }];
  });
  const rows = tokenRows(recipe, spec);
  const both = products.find(([kind]) => rows.some(([of]) => of === kind));
  if (both)
    throw wrong(
      recipe,
      `its targets have ${tableModules(spec)[both[0]]}, of which trainable_tokens trains single rows`,
      "PEFT cannot do both: leave it out of the targets, or leave out trainable_tokens",
    );
  const all = [...products, ...rows];
  if (all.length === 0) return null;
  checkTrained(recipe, spec, all);
  return Object.fromEntries(all);
}

/** Of tied tables the rows of tokens are those of both. */
function tokenRows(recipe: AskedTables, spec: ModelSpec): [TableKind, Table][] {
  const given = recipe.trainableTokens ?? null;
  if (given === null) return [];
  const modules = tableModules(spec);
  const isList = (of: typeof given): of is readonly (string | number)[] => Array.isArray(of);
  const byKind = isList(given)
    ? [["embedding", given] as const]
    : Object.entries(given).map(([name, tokens]) => {
        const kind = TABLE_KINDS.find((of) => isNamed(modules[of], [name]));
        if (kind !== undefined) return [kind, tokens] as const;
        const known = Object.values(modules).join(" or ");
        throw wrong(recipe, `trainable_tokens names ${name}`, `name ${known}, or give a list, which is of the embedding`);
      });
  if (spec.tiedEmbeddings && byKind.some(([kind]) => kind === "head"))
    throw wrong(
      recipe,
      `trainable_tokens names ${modules.head}, which is the embedding in this model`,
      `name ${modules.embedding} alone: its rows serve both`,
    );
  return byKind.flatMap(([kind, tokens]): [TableKind, Table][] => {
    const ids = tokens.filter((token) => typeof token === "number");
    checkTokens(recipe, spec, ids);
    const table = { tokens: ids };
    return kind === "embedding" && spec.tiedEmbeddings
      ? [
          [kind, table],
          ["head", table],
        ]
      : [[kind, table]];
  });
}

function checkTokens(recipe: AskedTables, { vocab }: ModelSpec, tokens: readonly number[]): void {
  const twice = tokens.find((token, i) => tokens.indexOf(token) !== i);
  if (twice !== undefined) throw wrong(recipe, `trainable_tokens has token ${twice} twice`, "leave it out once");
  const beyond = tokens.filter((token) => token >= vocab);
  if (beyond.length > 0)
    throw wrong(
      recipe,
      `trainable_tokens has ${beyond.slice(0, 5).join(", ")}, and the base model's tables end with token ${vocab - 1}`,
      "resize the base model first, and save it with its tokenizer: model.resize_token_embeddings(len(tokenizer))",
    );
  if (tokens.length > MOST_TOKENS)
    throw wrong(
      recipe,
      `trainable_tokens has ${counted(tokens.length, "token")}, at most ${count(MOST_TOKENS)} are trained`,
      "train the whole table: name it among the targets",
    );
}

/** What is trained with products of tables and rows of tokens, and what is not. */
function checkTrained(recipe: AskedTables, spec: ModelSpec, all: readonly (readonly [TableKind, Table])[]): void {
  const { method, init = "default", loraPlusRatio = 1 } = recipe;
  const modules = tableModules(spec);
  const names = [...new Set(all.map(([kind]) => modules[kind]))].join(" and ");
  const { title, trainsTables } = DEFINITIONS[method];
  if (!trainsTables)
    throw wrong(recipe, `a ${title} is not trained on ${names}`, 'take the method "lora", or leave the tables out');
  if (isSvdInit(init))
    throw wrong(recipe, `init = "${init}" is not for ${names}`, "leave init out: their products begin as zero");
  const embedding = all.find(([kind]) => kind === "embedding");
  if (!embedding) return;
  if (loraPlusRatio !== 1 && !("tokens" in embedding[1]))
    throw wrong(
      recipe,
      `lora_plus_ratio is ${loraPlusRatio} with ${modules.embedding}, to which PEFT gives a rate of its own`,
      "leave lora_plus_ratio out, or give the embedding an adapter of its own",
    );
  if (spec.embeddingNorm !== null || spec.perLayer !== null)
    throw wrong(
      recipe,
      `${modules.embedding} of this ${spec.family} model is not trained: ${spec.perLayer ? "its layers have inputs of their own from it" : "its rows are normed"}`,
      `name ${modules.head} alone`,
    );
}

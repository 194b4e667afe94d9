// Where an adapter of a recipe acts on a given base model, and with which ranks and scales.

import { RequestError } from "../base/errors.ts";
import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import { isAll, isNamed, isTargeted, type PatternTable, patternValue } from "../base/targeting.ts";
import { expertsOf, isOfExperts, type Linear, linearsIn, modulePath, modulesOf } from "../families/linears.ts";
import { familyOf } from "../families/registry.ts";
import { layerTensors, tableModules } from "../families/tensors.ts";
import type { Placed, PlacedAdapter } from "../methods/adapter.ts";
import { placed, scaleOf } from "../methods/placement.ts";
import { DEFINITIONS } from "../methods/registry.ts";
import type { AdapterRecipe } from "../recipe/recipe.ts";
import { type AskedTables, namedTables, placeTables } from "./tables.ts";

type Asked = Pick<
  AdapterRecipe,
  | "name"
  | "targets"
  | "exclude"
  | "layers"
  | "rank"
  | "rankPattern"
  | "alpha"
  | "alphaPattern"
  | "rslora"
  | "method"
  | "init"
  | "experts"
> &
  AskedTables;

/** Ranks and scales as the recipe has them. A name or pattern that matches nothing is a RequestError, `plan.targets`. */
export function placeAdapter(recipe: Asked, spec: ModelSpec): PlacedAdapter {
  const { rank, rankPattern, alpha, alphaPattern, rslora, method } = recipe;
  const { unadapted = [] } = familyOf(spec);
  const modules = modulesOf(spec).filter(({ linear }) => !unadapted.includes(modulePath(linear)));
  const paths = modules.map(({ path }) => path);
  checkNames(recipe, paths, spec);
  const targeted = modules.filter(({ layer, linear, path }) =>
    isTargeted(recipe, layer, path, isAll(recipe.targets) && isOfExperts(linear)),
  );
  const tables = placeTables(recipe, spec);
  if (targeted.length === 0 && !tables)
    throw nothing(recipe, "its targets, exclude and layers leave no linear layer", `the base model has ${listOf(spec)}`);
  if (targeted.some(({ linear }) => isOfExperts(linear))) checkExperts(recipe);
  checkPatterns(
    recipe,
    [...targeted, ...namedTables(recipe, spec)].map(({ path }) => path),
  );
  const chosen = new Map(
    targeted.map(({ path }) => {
      const own = { rank: patternValue(rankPattern, path) ?? rank, alpha: patternValue(alphaPattern, path) ?? alpha };
      return [path, { rank: own.rank, scale: scaleOf({ ...own, rslora, method }) }] as const;
    }),
  );
  const byPlace = new Map(modules.map(({ layer, linear, path }) => [`${layer}.${linear}`, chosen.get(path) ?? null]));
  const at = (layer: number, linear: Linear) => byPlace.get(`${layer}.${linear}`)!;
  return { ...placed(spec.layers, at, recipe.experts ?? "shared-outer"), ...(tables ? { tables } : {}) };
}

/** In experts adapters are plain low-rank products, as PEFT's are of parameters. */
function checkExperts({ name, method, init }: Asked): void {
  const refuse = (what: string, hint: string) => {
    throw new RequestError("plan.experts", `adapter '${name}' targets experts with ${what}`, hint);
  };
  if (!DEFINITIONS[method].actsInExperts) refuse(`method "${method}"`, "in experts LoRA alone is trained; name other targets");
  if (!["default", "gaussian"].includes(init))
    refuse(
      `init "${init}"`,
      'in experts an adapter begins as "default" or "gaussian"; or leave the experts out of its targets',
    );
}

const nothing = ({ name }: Asked, what: string, hint: string) =>
  new RequestError("plan.targets", `adapter '${name}': ${what}`, hint);

const listOf = (spec: ModelSpec): string =>
  `${spec.tower}.layers.0 to ${spec.tower}.layers.${spec.layers - 1}, with ${linearsIn(spec).join(", ")} (as in ${modulesOf(spec)[0]!.path})`;

const lastOf = (path: string): string => path.slice(path.lastIndexOf(".") + 1);

/** Of a model with encoders: only its part for text is trained. */
const elsewhere = ({ tower }: ModelSpec): string => (tower === "model" ? "" : `; only its part for text, ${tower}, is trained`);

function checkNames(recipe: Asked, paths: readonly string[], spec: ModelSpec): void {
  const { targets, exclude, layers } = recipe;
  const tables = Object.values(tableModules(spec));
  const all = [...paths, ...tables];
  const router = routerPaths(spec).find((path) => !isAll(targets) && isNamed(path, targets) && !paths.includes(path));
  if (router !== undefined && (exclude === null || !isNamed(router, exclude)))
    throw nothing(recipe, `its targets have ${router}, a router`, "routers stay as they are: leave it out");
  const refused = isAll(targets)
    ? undefined
    : modulesOf(spec).find(({ layer, path }) => !paths.includes(path) && isTargeted(recipe, layer, path))?.path;
  if (refused !== undefined)
    throw nothing(
      recipe,
      `its targets have ${refused}, where PEFT refuses adapters`,
      'leave it out; "all-linear" has none there',
    );
  if (typeof targets !== "string") {
    const unknown = targets.filter((target) => !all.some((path) => isNamed(path, [target])));
    const names = unknown.map((target) => `'${target}'`).join(", ");
    if (unknown.length > 0)
      throw nothing(
        recipe,
        `${names} is no linear layer of this ${spec.family} model${elsewhere(spec)}`,
        `targets may be "all-linear" or any of ${linearsIn(spec).join(", ")}, ${tables.map(lastOf).join(", ")}`,
      );
  } else if (!isAll(targets) && !all.some((path) => isNamed(path, targets)))
    throw nothing(
      recipe,
      `targets "${targets}" matches no linear layer as a whole${elsewhere(spec)}`,
      `the base model has ${listOf(spec)}`,
    );
  const without = exclude === null ? [] : typeof exclude === "string" ? [exclude] : exclude.map((name) => [name]);
  for (const one of without)
    if (!all.some((path) => isNamed(path, one)))
      throw nothing(recipe, `exclude '${one}' matches no linear layer`, `the base model has ${listOf(spec)}`);
  const beyond = (layers ?? []).filter((layer) => layer >= spec.layers);
  if (beyond.length > 0)
    throw nothing(recipe, `layers has ${beyond.join(", ")}`, `the base model has the layers 0 to ${spec.layers - 1}`);
}

const routerPaths = (spec: ModelSpec): readonly string[] =>
  expertsOf(spec).length === 0
    ? []
    : range(spec.layers).flatMap((layer) => {
        const { experts } = layerTensors(spec, layer);
        return experts === null ? [] : [`${spec.tower}.layers.${layer}.${experts.router.path}`];
      });

function checkPatterns({ name, rankPattern, alphaPattern }: Asked, targeted: readonly string[]): void {
  for (const [key, table] of [
    ["rank_pattern", rankPattern],
    ["alpha_pattern", alphaPattern],
  ] as const)
    for (const pattern of Object.keys(table)) {
      const only: PatternTable = { [pattern]: 1 };
      if (targeted.some((path) => patternValue(only, path) !== null)) continue;
      const shown =
        targeted.length > 8 ? `${targeted.slice(0, 7).join(", ")} and ${targeted.length - 7} more` : targeted.join(", ");
      throw new RequestError(
        "plan.targets",
        `adapter '${name}': ${key} "${pattern}" matches none of its modules`,
        `it has ${shown}`,
      );
    }
}

/** Linears of layers that an adapter acts on. */
export const countModules = ({ targets, places }: Placed, layers: number): number =>
  places ? places.ranks.flat().filter((rank) => rank > 0).length : targets.length * layers;

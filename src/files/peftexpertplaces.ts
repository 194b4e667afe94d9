// How a PEFT config names the experts that an adapter acts in, with their ranks and alphas: next to what it says of linears.

import { range } from "../base/shape.ts";
import type { ModelSpec } from "../base/spec.ts";
import type { PatternTable } from "../base/targeting.ts";
import {
  expertLinear,
  GROUPS,
  groupsOfLayer,
  isOfExperts,
  LINEARS,
  type Linear,
  linearsOfModel,
  modulePath,
} from "../families/linears.ts";
import type { Placed, PlacedAdapter } from "../methods/adapter.ts";
import { alphaOf, placed, rankAt, scaleAt } from "../methods/placement.ts";
import { expertPath, parameterOf } from "./peftexperts.ts";

type Adapter = Placed & { readonly alpha: number; readonly rslora: boolean };
type Fields = {
  readonly rank: number;
  readonly alpha: number;
  readonly targets: string | readonly string[];
  readonly layers: readonly number[] | null;
  readonly rankPattern: PatternTable;
  readonly alphaPattern: PatternTable;
};

const escaped = (path: string): string => path.replaceAll(".", "\\.");
const lastOf = (path: string): string => path.slice(path.lastIndexOf(".") + 1);

/** Where an adapter acts besides experts; null where it acts in nothing else. */
export function besideExperts(adapter: Adapter): (PlacedAdapter & { readonly alpha: number }) | null {
  const { places, alpha, rslora } = adapter;
  const others = placed(places!.ranks.length, (layer, linear) => {
    const rank = isOfExperts(linear) ? 0 : rankAt(adapter, layer, linear);
    return rank === 0 ? null : { rank, scale: scaleAt({ ...adapter, scale: 0 }, layer, linear) };
  });
  if (others.targets.length === 0) return null;
  return { ...others, alpha: others.places ? alpha : alphaOf(others.scale, others.rank, rslora) };
}

type Site = { readonly layer: number; readonly linear: Linear; readonly rank: number; readonly alpha: number };

/** Sites in experts, in order. */
function sitesOf(adapter: Adapter): Site[] {
  const of: Placed = adapter;
  return range(adapter.places!.ranks.length).flatMap((layer) =>
    LINEARS.filter((linear) => isOfExperts(linear) && rankAt(of, layer, linear) > 0).map((linear) => {
      const rank = rankAt(of, layer, linear);
      return { layer, linear, rank, alpha: alphaOf(scaleAt({ ...adapter, scale: 0 }, layer, linear), rank, adapter.rslora) };
    }),
  );
}

/**
 * Whether an adapter acts in experts that files have apart. PEFT 0.21 makes of these a product of gate and up with twice the
 * config's own rank and alpha, and one of down with these: patterns do not reach them, and with rsLoRA twice both is another
 * scale.
 */
export const actsApart = (adapter: Placed, spec: ModelSpec): boolean =>
  range(spec.layers).some((layer) =>
    adapter.targets.some(
      (linear) => isOfExperts(linear) && rankAt(adapter, layer, linear) > 0 && parameterOf(spec, layer, linear) === null,
    ),
  );

/**
 * The fields of all else with the rank and alpha of these experts as the config's own, and what was its own as patterns; as
 * they are where experts differ, or a pattern would reach them.
 */
function basedOn(experts: readonly Site[], fields: Fields): Fields {
  const { targets } = fields;
  const [first] = experts;
  if (!first || typeof targets === "string") return fields;
  const { rank, alpha } = first;
  const names = experts.map(({ linear }) => lastOf(modulePath(linear)));
  if (experts.some((site) => site.rank !== rank || site.alpha !== alpha)) return fields;
  if (targets.some((target) => names.includes(lastOf(target)))) return fields;
  /** After the patterns that are there, of which the first that matches counts. */
  const withOwn = (patterns: PatternTable, own: number): PatternTable => ({
    ...patterns,
    ...Object.fromEntries(targets.map(escaped).flatMap((target) => (Object.hasOwn(patterns, target) ? [] : [[target, own]]))),
  });
  return {
    ...{ ...fields, rank, alpha },
    rankPattern: rank === fields.rank ? fields.rankPattern : withOwn(fields.rankPattern, fields.rank),
    alphaPattern: alpha === fields.alpha ? fields.alphaPattern : withOwn(fields.alphaPattern, fields.alpha),
  };
}

/** The fields of a config with the experts in them, and the parameters that it targets; `others` of all else, or null. */
export function withExperts(
  others: Fields | null,
  adapter: Adapter,
  spec: ModelSpec,
): Fields & { readonly parameters: readonly string[] | null } {
  const sites = sitesOf(adapter);
  const { tower } = spec;
  const own = sites.filter(({ layer, linear }) => parameterOf(spec, layer, linear) === null);
  const fields = others
    ? basedOn(own, others)
    : { ...{ rank: sites[0]!.rank, alpha: sites[0]!.alpha }, targets: [], layers: null, rankPattern: {}, alphaPattern: {} };
  const linears = [...new Set(sites.map(({ linear }) => linear))];
  const layersWith = (linear: Linear) =>
    range(spec.layers).filter((layer) => groupsOfLayer(spec, layer).some((group) => GROUPS[group].includes(linear)));
  const isEven = linears.every((linear) => sites.filter((site) => site.linear === linear).length === layersWith(linear).length);
  const path = ({ layer, linear }: Site) => expertPath({ spec, tower, layer, linear });
  /** Of all layers where the values are the same in all, else of one. */
  const pattern = (site: Site, isAll: boolean): string => {
    const whole = escaped(path(site)).replace("\\.experts\\.0\\.", "\\.experts\\.\\d+\\.");
    return isAll ? whole.replace(/^.*?layers\\\.\d+\\\./, "") : whole;
  };
  const patterns = (key: "rank" | "alpha", base: number): PatternTable =>
    Object.fromEntries(
      linears.flatMap((linear) => {
        const own = sites.filter((site) => site.linear === linear);
        const other = own.filter((site) => site[key] !== base);
        if (other.length === own.length && new Set(other.map((site) => site[key])).size === 1)
          return [[pattern(other[0]!, true), other[0]![key]]];
        return other.map((site): [string, number] => [pattern(site, false), site[key]]);
      }),
    );
  const parameters = sites.flatMap(({ layer, linear }) => {
    const parameter = parameterOf(spec, layer, linear);
    return parameter === null ? [] : [isEven ? parameter : `${tower}.layers.${layer}.${parameter}`];
  });
  return {
    ...fields,
    targets: own.length === 0 ? fields.targets : targetsWith(fields, own, isEven, spec, adapter),
    rankPattern: { ...patterns("rank", fields.rank), ...fields.rankPattern },
    alphaPattern: { ...patterns("alpha", fields.alpha), ...fields.alphaPattern },
    parameters: parameters.length === 0 ? null : [...new Set(parameters)],
  };
}

/** The names of linears in experts where those alone or all of their name are targets, else their whole paths. */
function targetsWith(
  { targets, layers }: Fields,
  sites: readonly Site[],
  isEven: boolean,
  spec: ModelSpec,
  adapter: Adapter,
): string | readonly string[] {
  const linears = [...new Set(sites.map(({ linear }) => linear))];
  const ends = linears.map((linear) => escaped(modulePath(linear)).replace("experts\\.", "experts\\.\\d+\\."));
  if (typeof targets === "string") {
    const of = isEven ? "\\d+" : `(${[...new Set(sites.map(({ layer }) => layer))].join("|")})`;
    return `${targets}|${escaped(spec.tower)}\\.layers\\.${of}\\.(${ends.join("|")})`;
  }
  const names = linears.map((linear) => lastOf(modulePath(linear)));
  const dense = linearsOfModel(spec).filter((linear) => !isOfExperts(linear) && names.includes(lastOf(modulePath(linear))));
  const has = (linear: Linear, layer: number) => groupsOfLayer(spec, layer).some((group) => GROUPS[group].includes(linear));
  const isWhole = dense.every((linear) =>
    range(spec.layers).every((layer) => !has(linear, layer) || rankAt(adapter, layer, linear) > 0),
  );
  const free = targets.filter((target) => !dense.some((linear) => modulePath(linear) === target));
  if (isEven && isWhole && layers === null) return [...new Set([...free, ...names])];
  const paths = sites.flatMap(({ layer, linear }) => {
    const { product, index, experts } = expertLinear(spec, layer, linear);
    return range(experts).map((e) => `${spec.tower}.layers.${layer}.${product.path}.${e}.${product.linears[index]}`);
  });
  return [...targets, ...paths];
}

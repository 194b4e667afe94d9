// All objectives, and what the program asks of one by its name. Nothing outside this folder compares names of objectives.

import * as v from "valibot";
import { camel, snake } from "../base/case.ts";
import { table } from "../base/check.ts";
import { apoZero } from "./apo-zero.ts";
import { cit } from "./cit.ts";
import { cpo } from "./cpo.ts";
import type {
  BatchTotals,
  Definition,
  Reference,
  RowKind,
  RowLoss,
  ScoredRow,
  SettingsOf,
  TableContext,
} from "./definition.ts";
import { dpo } from "./dpo.ts";
import { type Grpo, grpo } from "./grpo.ts";
import { kto } from "./kto.ts";
import { orpo } from "./orpo.ts";
import { sft } from "./sft.ts";
import { simpo } from "./simpo.ts";

const OBJECTIVES = { sft, dpo, cpo, simpo, orpo, kto, cit, apo_zero: apoZero, grpo };

type All = typeof OBJECTIVES;
export type ObjectiveName = keyof All;
/** What an adapter is trained for, as plain data: it stands in recipes and travels to the stages. */
export type Objective = { [N in ObjectiveName]: SettingsOf<N, All[N]["keys"]> }[ObjectiveName];
/** Objectives over rows of two sequences. */
export type Preference = Exclude<Objective, { readonly name: "sft" | "grpo" }>;

export const OBJECTIVE_NAMES = Object.keys(OBJECTIVES) as ObjectiveName[];
/** The compiler knows each definition by its own settings; here any of them goes with the settings of its name. */
const definitionOf = ({ name }: { readonly name: ObjectiveName }) =>
  OBJECTIVES[name] as unknown as Definition<string, v.ObjectEntries>;
type Settings = SettingsOf<string, v.ObjectEntries>;

/**
 * Each objective's table in a recipe. Defaults are those of TRL, but SimPO's, which are its paper's, and CIT's, of its
 * authors' code (luka-group/CoIN).
 */
export const objectiveTables = OBJECTIVE_NAMES.map((name) => table({ name: v.literal(name), ...definitionOf({ name }).keys }));
type ObjectiveTable = { readonly name: ObjectiveName };

const sentReference = v.union([v.picklist(["start", "base"]), v.strictObject({ folder: v.string() })]);

/** Objectives over rows of two sequences as they travel to the stages. */
export const preferenceSchema = v.variant(
  "name",
  OBJECTIVE_NAMES.filter((name) => definitionOf({ name }).loss !== null).map((name) => {
    const keys = Object.entries(definitionOf({ name }).keys);
    const sent = keys.map(([key, schema]) => [camel(key), key === "reference" ? sentReference : schema]);
    return v.strictObject({ name: v.literal(name), ...(Object.fromEntries(sent) as v.ObjectEntries) });
  }),
) as unknown as v.GenericSchema<unknown, Preference>;

/** From a recipe's table, or a name alone, with defaults; `place` makes a folder's path whole. */
export function objectiveOf(given: ObjectiveName | ObjectiveTable, place: (path: string) => string): Objective {
  const table = typeof given === "string" ? { name: given } : given;
  const read = v.parse(objectiveTables[OBJECTIVE_NAMES.indexOf(table.name)]!, table);
  const referenceFrom = (named: string): Reference =>
    named === "start" || named === "base" ? named : { folder: place(named) };
  const settings = Object.entries(read).map(([key, value]) => [
    camel(key),
    key === "reference" ? referenceFrom(value as string) : value,
  ]);
  return Object.fromEntries(settings) as Objective;
}

/** The reverse: the table, or the name alone of an objective without keys. */
export function objectiveTable(objective: Objective): string | Record<string, unknown> {
  const plain = (key: string, value: unknown) =>
    key === "reference" && typeof value === "object" && value !== null ? (value as { folder: string }).folder : value;
  const entries = Object.entries(objective);
  return entries.length === 1
    ? objective.name
    : Object.fromEntries(entries.map(([key, value]) => [snake(key), plain(key, value)]));
}

export const rowKindOf = (objective: { readonly name: ObjectiveName }): RowKind => definitionOf(objective).rows;

/**
 * Whether rows have two sequences, which are weighed by how likely the model finds them, or one, whose targets
 * are just learned.
 */
export const isPreference = (objective: Objective): objective is Preference => definitionOf(objective).loss !== null;

/** What is wrong with a name alone, or with a table that its schema accepts; null for nothing. */
export function objectiveFault(given: ObjectiveName | ObjectiveTable, of: TableContext): string | null {
  const table = typeof given === "string" ? { name: given } : given;
  const read = v.safeParse(objectiveTables[OBJECTIVE_NAMES.indexOf(table.name)]!, table);
  if (read.success) return definitionOf(table).fault?.(objectiveOf(table, (path) => path) as unknown as Settings, of) ?? null;
  if (table === given) return null; // its schema has reported it
  const missing = read.issues.map((issue) => v.getDotPath(issue)).join(", ");
  return `is "${table.name}", expected a table with that name and ${missing}`;
}

/** The settings of an objective whose completions the adapter samples itself; null for those that learn what rows say. */
export const rolloutsOf = (objective: Objective): Grpo | null => (objective.name === "grpo" ? objective : null);

/** The reference that it measures against; null for those that need none. */
export const referenceOf = (objective: Objective): Reference | null => ("reference" in objective ? objective.reference : null);

/** What stands for an instruction where those of a micro-batch are compared; null where they are not. */
export const poolingOf = (objective: Objective): "last" | "mean" | null =>
  definitionOf(objective).pooling?.(objective as unknown as Settings) ?? null;

/** Whether rows are compared with the others of their micro-batch, so that it needs two. */
export const isContrastive = (objective: { readonly name: ObjectiveName }): boolean =>
  definitionOf(objective).pooling !== undefined;

/** Of all rows of a micro-batch. Sources: each objective's own file. */
export const preferenceLoss = (objective: Preference, rows: readonly ScoredRow[], totals: BatchTotals): RowLoss[] =>
  definitionOf(objective).loss!(objective as unknown as Settings, rows, totals);

/** Whether a row is judged as it should be: the preferred answer above the other, the desirable one above the reference. */
export const isCorrect = (row: ScoredRow, { rewards: [own, other] }: RowLoss): boolean =>
  other === null ? own > 0 === row.label : own > other;

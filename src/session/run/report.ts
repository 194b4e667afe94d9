// What a run's folder says of the run, for people to read: how its adapters came out, their curves, settings and plan.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RequestError, textOf } from "../../base/errors.ts";
import { shortPath } from "../../base/units.ts";
import { type Outcome, type RunTime, readRun } from "../../files/record.ts";
import { loadRecipe } from "../../recipe/load.ts";
import type { Recipe } from "../../recipe/recipe.ts";
import { adapterTable } from "../../recipe/resolve.ts";
import { metricLines } from "../events/metrics.ts";
import { type PlannedRun, planOf } from "../planning/planned-run.ts";
import { withoutSecrets } from "../trackers/public-settings.ts";
import { RUN_RECIPE, withAdded } from "./folder.ts";
import { ranked } from "./ranking.ts";

export type CurvePoints = readonly (readonly [step: number, value: number])[];
export type CurveName = "loss" | "evaluation" | "gradNorm" | "learningRate";

export type ReportedAdapter = {
  readonly name: string;
  /** Null while it has not ended. */
  readonly outcome: Outcome | null;
  readonly isBest: boolean;
  readonly curves: Readonly<Record<CurveName, CurvePoints>>;
  /** Its keys of the recipe, none left to defaults. */
  readonly settings: Readonly<Record<string, unknown>>;
};

export type RunReport = {
  readonly folder: string;
  readonly recipe: Recipe;
  /** Those that ended first, the best first; adapters with the same rows next to each other. */
  readonly adapters: readonly ReportedAdapter[];
  readonly time: RunTime | null;
  /** The run as it is planned on this machine now, or why it cannot be planned here. */
  readonly planned: PlannedRun | string;
};

/** Points of all curves of one kind together, and of one curve. */
const [MOST_POINTS, FEWEST, MOST] = [40_000, 48, 400];

/** A curve of at most 2 n points, each the mean of equally many values. */
class Thinned {
  readonly #points: [step: number, value: number][] = [];
  #every = 1;
  #sum = [0, 0, 0] as [step: number, value: number, count: number];

  constructor(private readonly n: number) {}

  add(step: number, value: number): void {
    const sum = this.#sum;
    [sum[0], sum[1], sum[2]] = [step, sum[1] + value, sum[2] + 1];
    if (sum[2] < this.#every) return;
    this.#points.push([step, sum[1] / sum[2]]);
    this.#sum = [0, 0, 0];
    if (this.#points.length < 2 * this.n) return;
    for (let i = 0; 2 * i < this.#points.length; i++) {
      const [a, b] = [this.#points[2 * i]!, this.#points[2 * i + 1]!];
      this.#points[i] = [b[0], (a[1] + b[1]) / 2];
    }
    this.#points.length = this.n;
    this.#every *= 2;
  }

  /** With what has come since the last whole mean. */
  get points(): CurvePoints {
    const [step, total, count] = this.#sum;
    return count === 0 ? this.#points : [...this.#points, [step, total / count]];
  }
}

/**
 * Reads a run's folder; the run may be under way. Throws a RequestError, `report.folder`, where it holds no run. With
 * `isPlanned` its data is read again for its schedule.
 */
export async function reportOf(folder: string, { isPlanned = true } = {}): Promise<RunReport> {
  const path = join(folder, RUN_RECIPE);
  if (!existsSync(path))
    throw new RequestError(
      "report.folder",
      `${shortPath(folder)} holds no run: it has no ${RUN_RECIPE}`,
      "name the output folder of a run",
    );
  const recipe = withAdded(loadRecipe(path, { output: folder }));
  const { adapters: ended, time = null } = readRun(folder);
  const curves = readCurves(
    folder,
    recipe.adapters.map(({ name }) => name),
  );
  const known = recipe.adapters.filter(({ name }) => ended[name]);
  const ranking = ranked(
    known.map(({ name }) => ended[name]!),
    known,
  );
  const recipes = new Map(recipe.adapters.map((of) => [of.name, of]));
  const names = new Set([...ranking.adapters.map(({ name }) => name), ...recipes.keys()]);
  const adapters = [...names].map((name): ReportedAdapter => {
    const outcome = ended[name] ?? null;
    return {
      name,
      outcome,
      isBest: outcome !== null && ranking.best.has(outcome),
      curves: curves.get(name)!,
      settings: withoutSecrets(adapterTable(recipes.get(name)!)) as ReportedAdapter["settings"],
    };
  });
  return { folder, recipe, adapters, time, planned: isPlanned ? await plannedOr(recipe) : "it was not asked for" };
}

async function plannedOr(recipe: Recipe): Promise<PlannedRun | string> {
  try {
    return await planOf(recipe);
  } catch (error) {
    if (error instanceof RequestError) return textOf(error);
    throw error;
  }
}

function readCurves(output: string, names: readonly string[]): Map<string, Record<CurveName, CurvePoints>> {
  const n = Math.min(MOST, Math.max(FEWEST, Math.floor(MOST_POINTS / names.length / 2)));
  const thinned = new Map(
    names.map((name) => [
      name,
      { loss: new Thinned(n), evaluation: new Thinned(n), gradNorm: new Thinned(n), learningRate: new Thinned(n) },
    ]),
  );
  for (const line of metricLines(output)) addLine(line, thinned);
  const pointsOf = (of: Record<CurveName, Thinned>) =>
    Object.fromEntries(Object.entries(of).map(([name, curve]) => [name, curve.points])) as Record<CurveName, CurvePoints>;
  return new Map([...thinned].map(([name, of]) => [name, pointsOf(of)]));
}

function addLine(values: Readonly<Record<string, unknown>>, curves: ReadonlyMap<string, Record<CurveName, Thinned>>): void {
  const curve = curves.get(`${values["adapter"]}`);
  const step = values["step"];
  if (!curve || typeof step !== "number") return;
  const add = (name: CurveName, value: unknown) => {
    if (typeof value === "number") curve[name].add(step, value);
  };
  if (values["type"] === "evaluation") add("evaluation", values["loss"]);
  if (values["type"] !== "step") return;
  add("loss", values["loss"]);
  add("gradNorm", values["grad_norm"]);
  add("learningRate", values["learning_rate"]);
}

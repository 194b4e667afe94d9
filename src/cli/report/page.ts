// The report of a run as one HTML file: nothing is loaded from elsewhere, and all that is foreign is escaped.

import { basename } from "node:path";
import { count, counted, duration, shortPath } from "../../base/units.ts";
import { VERSION } from "../../base/version.ts";
import type { CurveName, ReportedAdapter, RunReport } from "../../session/run/report.ts";
import { drawSvg } from "../draw/svg.ts";
import { xml } from "../draw/xml.ts";
import { chart } from "./chart.ts";
import { SCRIPT, STYLE } from "./style.ts";

/** More adapters than this are drawn by thinner lines. */
const MANY = 24;
/** Turned on by this, hues stay far from all that came before. */
const GOLDEN_ANGLE = 137.508;

const CHARTS: readonly (readonly [CurveName, string])[] = [
  ["loss", "Training loss"],
  ["evaluation", "Held-out loss"],
  ["gradNorm", "Gradient norm"],
  ["learningRate", "Learning rate"],
];

type Cell = { readonly html: string; readonly value?: number | null; readonly kind?: string };
type Column = {
  readonly title: string;
  readonly isNumber?: boolean;
  readonly of: (adapter: ReportedAdapter, id: number) => Cell;
};

const number = (value: number | null | undefined, written: (value: number) => string): Cell =>
  value === null || value === undefined || Number.isNaN(value) ? { html: "", value: null } : { html: written(value), value };
const loss = (value: number | null | undefined): Cell => number(value, (of) => of.toFixed(4));
const share = (of: { readonly exact: number; readonly rows: number } | null | undefined): Cell =>
  number(of && of.rows > 0 ? of.exact / of.rows : null, (value) => `${(100 * value).toFixed(0)} %`);

function columnsOf(adapters: readonly ReportedAdapter[]): Column[] {
  const has = (of: (adapter: ReportedAdapter) => unknown) => adapters.some((adapter) => of(adapter) != null);
  const isHeldOut = has(({ outcome }) => outcome?.before ?? outcome?.after);
  const heldOut: Column[] = [
    { title: "held-out loss before", isNumber: true, of: ({ outcome }) => loss(outcome?.before?.loss) },
    { title: "after", isNumber: true, of: ({ outcome }) => loss(outcome?.after?.loss) },
    { title: "right before", isNumber: true, of: ({ outcome }) => share(outcome?.before) },
    { title: "after", isNumber: true, of: ({ outcome }) => share(outcome?.after) },
  ];
  return [
    {
      title: "adapter",
      of: ({ name, isBest }, id) => ({ html: `<span class="dot b${id}"></span>${xml(name)}${isBest ? " ★" : ""}` }),
    },
    { title: "status", of: ({ outcome }) => ({ html: outcome?.status ?? "not ended", kind: outcome?.status ?? "" }) },
    {
      title: "steps",
      isNumber: true,
      of: ({ outcome, curves }) => number(outcome?.steps ?? curves.loss.at(-1)?.[0], count),
    },
    { title: "first loss", isNumber: true, of: ({ outcome, curves }) => loss(outcome?.firstLoss ?? curves.loss[0]?.[1]) },
    { title: "last loss", isNumber: true, of: ({ outcome, curves }) => loss(outcome?.lastLoss ?? curves.loss.at(-1)?.[1]) },
    ...(isHeldOut ? heldOut : []),
    { title: "tokens", isNumber: true, of: ({ outcome }) => number(outcome?.tokens, count) },
    { title: "seconds", isNumber: true, of: ({ outcome }) => number(outcome?.seconds, (of) => of.toFixed(0)) },
    ...(has(({ outcome }) => outcome?.message)
      ? [{ title: "why", of: ({ outcome }: ReportedAdapter) => ({ html: xml(outcome?.message ?? ""), kind: "why" }) }]
      : []),
  ];
}

function tableOf(adapters: readonly ReportedAdapter[]): string {
  const columns = columnsOf(adapters);
  const cell = ({ html, value, kind }: Cell, isNumber = false) => {
    const classes = [isNumber ? "n" : "", kind ?? ""].filter(Boolean).join(" ");
    return `<td${classes && ` class="${classes}"`}${value === undefined ? "" : ` data-v="${value ?? ""}"`}>${html}</td>`;
  };
  return [
    '<input id="search" type="search" placeholder="Search adapters" aria-label="Search adapters">',
    '<div class="wide"><table id="adapters"><thead><tr>',
    ...columns.map(({ title, isNumber }) => `<th${isNumber ? ' class="n"' : ""}>${title}</th>`),
    "</tr></thead><tbody>",
    ...adapters.map(
      (adapter, id) => `<tr data-id="${id}">${columns.map((of) => cell(of.of(adapter, id), of.isNumber)).join("")}</tr>`,
    ),
    "</tbody></table></div>",
    '<p class="faint">★ has the lowest loss of those that are held against the same rows. Choose rows to see their curves alone; a title sorts.</p>',
  ].join("\n");
}

/** What the adapters have in common, and where they differ. */
function settingsOf(adapters: readonly ReportedAdapter[]): string {
  const keys = [...new Set(adapters.flatMap(({ settings }) => Object.keys(settings)))].filter((key) => key !== "name");
  const written = (adapter: ReportedAdapter, key: string) => {
    const value = adapter.settings[key];
    return value === undefined ? "" : JSON.stringify(value);
  };
  const isShared = (key: string) => adapters.every((adapter) => written(adapter, key) === written(adapters[0]!, key));
  const [shared, own] = [keys.filter(isShared), keys.filter((key) => !isShared(key))];
  const row = (cells: readonly string[]) => `<tr>${cells.map((text) => `<td>${xml(text)}</td>`).join("")}</tr>`;
  const titles = (names: readonly string[]) =>
    `<thead><tr>${names.map((name) => `<th>${xml(name)}</th>`).join("")}</tr></thead>`;
  return [
    ...(own.length === 0
      ? []
      : [
          '<div class="wide"><table>',
          titles(["adapter", ...own]),
          `<tbody>${adapters.map((adapter) => row([adapter.name, ...own.map((key) => written(adapter, key))])).join("\n")}</tbody></table></div>`,
        ]),
    `<details${own.length === 0 ? " open" : ""}><summary>${own.length === 0 ? "Settings" : "Settings that all have"}</summary>`,
    `<div class="wide"><table>${titles(["key", "value"])}<tbody>`,
    ...shared.map((key) => row([key, written(adapters[0]!, key)])),
    "</tbody></table></div></details>",
  ].join("\n");
}

/** As a picture within the page: its own styles stay its own. */
function scheduleOf({ planned, recipe }: RunReport): string {
  if (typeof planned === "string") return `<p class="faint">The schedule cannot be drawn here: ${xml(planned)}</p>`;
  const svg = drawSvg(planned.plan, planned.simulated, `${basename(recipe.path)}, as planned on this machine`);
  return `<img alt="Which stage does what for which adapter, when" src="data:image/svg+xml;base64,${Buffer.from(svg).toString("base64")}">`;
}

function summaryOf({ adapters, recipe, time }: RunReport): string[] {
  const statuses = Map.groupBy(adapters, ({ outcome }) => outcome?.status ?? "not ended");
  const counts = [...statuses].map(([status, of]) => `${of.length} ${status}`).join(", ");
  const lines = [`${counted(adapters.length, "adapter")} on ${shortPath(recipe.model.path)}: ${counts}`];
  if (time === null) return lines;
  const expected = time.estimated_seconds === null ? "" : `, ${duration(time.estimated_seconds)} were expected (${time.basis})`;
  return [
    ...lines,
    `${counted(time.tokens, "token")} in ${duration(time.seconds)}${expected}, ${count(time.tokens_per_second)} tokens/s`,
  ];
}

/** The file. */
export function reportPage(report: RunReport): string {
  const { adapters, folder } = report;
  const title = `mlora: ${basename(folder)}`;
  const colours = adapters.map((_, id) => {
    const colour = Bun.color(`oklch(${[62, 70, 56][id % 3]}% 0.15 ${(255 + id * GOLDEN_ANGLE) % 360})`, "hex")!;
    return `.a${id} { stroke: ${colour} } .b${id} { background: ${colour} }`;
  });
  const charts = CHARTS.map(([name, of]) =>
    chart(
      of,
      adapters.map((adapter, id) => ({ name: adapter.name, id, curve: adapter.curves[name] })),
    ),
  ).filter((drawn) => drawn !== "");
  return `${[
    '<!doctype html><html lang="en"><head><meta charset="utf-8">',
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">",
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    `<title>${xml(title)}</title><style>${STYLE}${colours.join("\n")}</style></head>`,
    `<body${adapters.length > MANY ? ' class="many"' : ""}>`,
    `<h1>${xml(basename(folder))}</h1>`,
    ...summaryOf(report).map((line) => `<p>${xml(line)}</p>`),
    "<h2>Adapters</h2>",
    tableOf(adapters),
    "<h2>Curves</h2>",
    charts.length > 0 ? `<div class="charts">${charts.join("\n")}</div>` : '<p class="faint">No step has been made.</p>',
    "<h2>Settings</h2>",
    settingsOf(adapters),
    "<h2>Schedule</h2>",
    scheduleOf(report),
    `<p class="faint">Written by mlora ${VERSION}. Each point of a curve is the mean of equally many steps.</p>`,
    `<script>${SCRIPT}</script></body></html>`,
  ].join("\n")}\n`;
}

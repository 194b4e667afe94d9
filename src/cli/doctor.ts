// `mlora doctor`: what this machine has and lacks. Each part is made to work, not only looked for, and one that fails is a
// line of the report. The command itself fails only where nothing could be trained.

import { MloraError, RunError, textOf } from "../base/errors.ts";
import { jsonText, writeStdout } from "../base/terminal.ts";
import { VERSION } from "../base/version.ts";
import { PARTS, type Part } from "./doctor/parts.ts";

export type DoctorOptions = { readonly json?: boolean };

type Finding = {
  readonly state: "ok" | "none" | "fault";
  readonly text: string;
  readonly hint?: string | undefined;
  readonly facts?: object;
};

/** Prints the report. Throws a RunError, `doctor.unfit`, where nothing can be trained. */
export async function doctor({ json = false }: DoctorOptions): Promise<void> {
  const found = new Map<string, Finding>();
  // One by one: a crash then comes after the last good line.
  for (const part of PARTS) found.set(part.name, await examine(part));
  const lacking = PARTS.filter(({ name, needed }) => needed && found.get(name)!.state !== "ok").map(({ name }) => name);
  const fit = lacking.length === 0;
  writeStdout(json ? asJson(found, fit) : asText(found, fit));
  if (!fit) throw new RunError("doctor.unfit", `this machine cannot train: see ${lacking.join(", ")} above`);
}

async function examine({ examine }: Part): Promise<Finding> {
  try {
    return { state: "ok", ...(await examine()) };
  } catch (error) {
    return { state: "fault", text: textOf(error), hint: error instanceof MloraError ? error.hint : undefined };
  }
}

const MARKS = { ok: "ok", none: "-", fault: "FAULT" } as const;

function asText(found: ReadonlyMap<string, Finding>, fit: boolean): string {
  const wide = Math.max(...[...found.keys()].map((name) => name.length));
  const lines = [...found].flatMap(([name, { state, text, hint }]) => {
    const [first, ...more] = [...text.split("\n"), ...(hint ? [`hint: ${hint}`] : [])];
    const head = `  ${MARKS[state].padEnd(5)}  ${name.padEnd(wide)}  `;
    return [head + first, ...more.map((line) => " ".repeat(head.length) + line)];
  });
  return [`mlora ${VERSION}`, "", ...lines, "", `This machine ${fit ? "can" : "cannot"} train.`, ""].join("\n");
}

function asJson(found: ReadonlyMap<string, Finding>, fit: boolean): string {
  const parts = [...found].map(([name, { facts, ...rest }]) => [
    name.replaceAll(" ", "_").toLowerCase(),
    { ...rest, ...facts },
  ]);
  return `${jsonText({ version: VERSION, can_train: fit, parts: Object.fromEntries(parts) }, 2)}\n`;
}

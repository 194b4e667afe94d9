// `mlora report FOLDER`: a run as one HTML file.

import { join, resolve } from "node:path";
import { writeFileAtomic } from "../base/atomic.ts";
import { writeStdout } from "../base/terminal.ts";
import { shortPath } from "../base/units.ts";
import { reportOf } from "../session/run/report.ts";
import { fileOf } from "./flags.ts";
import { reportPage } from "./report/page.ts";

export async function report(folder: string, { output }: { readonly output?: unknown }): Promise<void> {
  const of = resolve(folder);
  const path = output === undefined ? null : fileOf("output", `${output}`);
  const page = reportPage(await reportOf(of));
  const written = path ?? join(of, "report.html");
  writeFileAtomic(written, page);
  writeStdout(`the report is in ${shortPath(written)}\n`);
}

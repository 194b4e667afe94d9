// `mlora sync FOLDER`: what waits for a tracker of experiments is sent.

import { resolve } from "node:path";
import { RunError } from "../base/errors.ts";
import { writeStderr, writeStdout } from "../base/terminal.ts";
import { counted } from "../base/units.ts";
import { syncRun } from "../session/trackers/sync.ts";

export async function sync(folder: string): Promise<void> {
  let lost = 0;
  const notice = (text: string): void => {
    lost++;
    writeStderr(`notice: ${text}\n`);
  };
  const { lines, url } = await syncRun(resolve(folder), notice, new AbortController().signal);
  writeStdout(lines === 0 ? `MLflow at ${url} has all of this run\n` : `sent ${counted(lines, "line")} to MLflow at ${url}\n`);
  if (lost > 0) throw new RunError("mlflow.refused", `the server refused ${lost} of the run's adapters`);
}

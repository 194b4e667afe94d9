// `mlora sync`: a run's lines go to the tracker's server that was away, or not named, while it trained.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../../base/errors.ts";
import { rowsPath } from "../../files/mlflow.ts";
import { claimOutput } from "../../files/output.ts";
import { MLFLOW } from "../../recipe/recipe.ts";
import { MlflowSending } from "./mlflow-sender.ts";
import { mlflowServer } from "./mlflow-server.ts";

/**
 * Sends what the server does not have; how many lines, and where they went. Throws RequestErrors where there is nothing to
 * send or no server, or a run is under way in the folder, which sends by itself; a RunError, `mlflow.failed`, where the server
 * fails.
 */
export async function syncRun(
  output: string,
  lost: (text: string) => void,
  signal: AbortSignal,
): Promise<{ readonly lines: number; readonly url: string }> {
  if (!existsSync(rowsPath(join(output, MLFLOW))))
    throw new RequestError(
      "sync.none",
      `${output} holds nothing for MLflow`,
      'a run has it with tracking = ["mlflow"]; W&B has its own program for its files',
    );
  const server = mlflowServer();
  if (!server)
    throw new RequestError("mlflow.address", "MLFLOW_TRACKING_URI is not set", "set it to the address of an MLflow server");
  using _claim = claimOutput(output);
  const lines = await new MlflowSending(output, server, lost).send(signal);
  return { lines, url: server.url };
}

// `mlora serve MODEL`: jobs and answers over HTTP until it is stopped.

import { writeStderr, writeStdout } from "../base/terminal.ts";
import { readConfig, type ServeFlags } from "../serve/config.ts";
import { openServer } from "../serve/server.ts";
import { onInterrupt } from "./signals.ts";

/** Serves until a signal comes. Throws what the stages are lost with: the same command continues. */
export async function serve(model: string, flags: ServeFlags): Promise<void> {
  const config = readConfig(model, flags);
  const stop = new AbortController();
  const stopped = new Promise<void>((resolve) => stop.signal.addEventListener("abort", () => resolve()));
  using _signals = onInterrupt(() => {
    writeStderr("stopping: steps under way are finished and everything is saved; press Ctrl-C again to quit immediately\n");
    stop.abort();
  });
  await using server = await openServer(config, stop.signal);
  writeStdout(`${server.model} on ${server.device}: ${server.url}/v1\n`);
  writeStdout(`live page: ${server.url}/${server.key === null ? "" : `#key=${server.key}`}\n`);
  if (server.key !== null) writeStdout(`key (shown once): ${server.key}\n`);
  await Promise.race([stopped, server.lost]);
}

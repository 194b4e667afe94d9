// A run asked from a test's own process: how long an answer takes is not how long a program takes to start next to a busy
// neighbour.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { askControl, type ControlRequest } from "../../src/bus/control.ts";
import { connectSealed } from "../../src/bus/seal.ts";
import type { Workplace } from "./program.ts";

/** A run answers within this time, or the request fails. */
const ANSWER_MS = 5_000;

/** Asks the only run under way in a place. */
export async function asker(place: Workplace) {
  const runs = join(place.root, "cache", "runs");
  const [entry] = readdirSync(runs).map((name) => JSON.parse(readFileSync(join(runs, name), "utf8")));
  const connection = await connectSealed(entry.reach.address, "a test", entry.reach.key);
  return {
    ask: <R extends ControlRequest>(request: R) => askControl(connection, entry.run, request, ANSWER_MS),
    [Symbol.asyncDispose]: () => connection[Symbol.asyncDispose](),
  };
}

/** Asks it once, over a connection of its own: a run that opens its stages again is reached elsewhere than before. */
export async function askOnce<R extends ControlRequest>(place: Workplace, request: R) {
  await using asking = await asker(place);
  return await asking.ask(request);
}

// What the terminal of a stream can show.

import { environment } from "../../base/env.ts";
import type { Screen } from "./terminal.ts";

/** Of a file or a pipe, which have no width. */
const WIDTH = 100;

export function screenOf(stream: { readonly isTTY?: boolean; readonly columns?: number }): Screen {
  const force = environment("FORCE_COLOR");
  const wanted = force === undefined ? stream.isTTY === true : force !== "0";
  return { width: stream.columns || WIDTH, colour: wanted && environment("NO_COLOR") === undefined };
}

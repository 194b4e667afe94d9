// Several cases with their peers prepared ahead: of each peer all cases import, load and compile at once, and wait for their
// turns (turn.py), in which each is measured alone. Needs memory for all cases of a peer.

import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Case, Program } from "./cases.ts";
import { havingOf, type Options, resultOfCommand, rowsOf, said } from "./measure.ts";
import type { Result, Row } from "./results.ts";

const LOOK_MS = 50;
const OWN: readonly Program[] = ["mlora", "before"];

/** Measures each case once by each program, in the order of `programs`; `got` has the row of each as it comes. */
export async function measureAhead(cases: readonly Case[], options: Options, got: (row: Row) => void): Promise<void> {
  const { programs, limit, environment, hindered, say } = options;
  const folder = mkdtempSync(join(tmpdir(), "mlora-turns-"));
  try {
    for (const program of programs) {
      const why = hindered(program);
      const begun = cases.flatMap((of, i) =>
        havingOf(of, { ...options, programs: [program] }).map((one) => {
          const turn = join(folder, `${program} ${i}`);
          const isLater = why !== null || OWN.includes(program);
          // One that is prepared ahead waits for the turns before its own, of which each takes the limit at most.
          const most = isLater ? limit : limit * (2 + i);
          const run = () => resultOfCommand(of, one.command, most, { ...environment(program), MLORA_TURN: turn });
          return { of, one, turn, run, ahead: isLater ? null : run() };
        }),
      );
      await Promise.all(begun.map(({ turn, ahead }) => ahead && readyOrEnded(`${turn}.ready`, ahead)));
      for (const { of, one, turn, run, ahead } of begun) {
        writeFileSync(turn, "");
        const result = why === null ? await (ahead ?? run()) : { error: why };
        one.results.push(result);
        say(said(of, program, result));
        for (const row of rowsOf(of, [one], options)) got(row);
      }
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function readyOrEnded(file: string, result: Promise<Result>): Promise<void> {
  let hasEnded = false;
  const ended = () => {
    hasEnded = true;
  };
  result.then(ended, ended);
  while (!hasEnded && !existsSync(file)) await Bun.sleep(LOOK_MS);
}

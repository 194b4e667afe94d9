// Kills of a run's processes at seeded moments; what was done is in the state file, so that it continues there.
//
//   bun scripts/nightly/kills.ts --kills 500 [--seed 1] [--state FILE] [--minutes 480]
//
// Prints each run that does not come to the bytes of an undisturbed one, and a summary; fails if there is one.

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { now } from "../../src/base/clock.ts";
import { sum } from "../../src/base/shape.ts";
import { type Came, Killer } from "../../tests/helpers/killer.ts";
import { Workplace } from "../../tests/helpers/program.ts";

/** Kills of one run at most. */
const OF_ONE = 6;

const { values } = parseArgs({
  options: {
    kills: { type: "string", default: "500" },
    seed: { type: "string", default: "1" },
    state: { type: "string", default: "kills.jsonl" },
    minutes: { type: "string", default: "480" },
  },
});
type Done = Came & { readonly wrong: string | null };

const done: Done[] = existsSync(values.state)
  ? readFileSync(values.state, "utf8")
      .split("\n")
      .filter(Boolean)
      .map((line) => JSON.parse(line))
  : [];
using place = new Workplace(3);
const killer = new Killer(place);
await killer.prepare();
const killed = () => sum(done.map(({ kills }) => kills.length));
const end = now() + 60_000 * Number(values.minutes);
while (killed() < Number(values.kills) && now() < end) {
  const one = await killer.come(Number(values.seed), done.length, 1 + (done.length % OF_ONE)).then(
    (came) => ({ ...came, wrong: null }),
    (error: Error) => ({ kills: [], joined: false, forked: false, wrong: error.message }),
  );
  done.push(one);
  appendFileSync(values.state, `${JSON.stringify(one)}\n`);
  if (one.wrong !== null) console.log(one.wrong);
}
const wrong = done.filter((one) => one.wrong !== null);
const counts = Object.entries(
  Object.groupBy(
    done.flatMap(({ kills }) => kills),
    (kill) => kill,
  ),
).map(([kill, of]) => `${kill} ${of!.length}`);
const [joined, forked] = [done.filter((one) => one.joined), done.filter((one) => one.forked)];
console.log(
  `${killed()} kills in ${done.length} runs (${joined.length} joined, ${forked.length} forked): ${counts.join(", ")}`,
);
console.log(`${wrong.length} runs came to something else`);
process.exit(wrong.length === 0 ? 0 : 1);

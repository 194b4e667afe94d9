// Faults of file calls, one in each run, walking over all calls and kinds; what was done is in the state file, so that it
// continues there.
//
//   bun scripts/nightly/faults.ts [--from 0] --faults 2000 [--seed 1] [--state FILE] [--minutes 480]
//
// Prints each fault that is not survived, and a summary; fails if there is one.

import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { now } from "../../src/base/clock.ts";
import { Rng } from "../../src/base/rng.ts";
import { Injector, KINDS } from "../../tests/helpers/injector.ts";
import { Workplace } from "../../tests/helpers/program.ts";

const { values } = parseArgs({
  options: {
    from: { type: "string", default: "0" },
    faults: { type: "string", default: "2000" },
    seed: { type: "string", default: "1" },
    state: { type: "string", default: "faults.jsonl" },
    minutes: { type: "string", default: "480" },
  },
});
type Done = { readonly i: number; readonly call: string; readonly code: number; readonly wrong: string | null };

const done = new Map<number, Done>(
  existsSync(values.state)
    ? readFileSync(values.state, "utf8")
        .split("\n")
        .filter(Boolean)
        .map((line) => JSON.parse(line) as Done)
        .map((one) => [one.i, one])
    : [],
);
using place = new Workplace(1);
const injector = new Injector(place);
const calls = await injector.calls();
const end = now() + 60_000 * Number(values.minutes);
for (let i = Number(values.from); i < Number(values.faults) && now() < end; i++) {
  if (done.has(i)) continue;
  const rng = new Rng(Number(values.seed), i);
  const fault = { number: 1 + (i % calls), kind: KINDS[(Math.floor(i / calls) + rng.below(KINDS.length)) % KINDS.length]! };
  const one = await injector.come(fault).then(
    ({ call, first }) => ({ i, call, code: first.code, wrong: null }),
    (error: Error) => ({ i, call: `${fault.kind} ${fault.number}`, code: -1, wrong: error.message }),
  );
  done.set(i, one);
  appendFileSync(values.state, `${JSON.stringify(one)}\n`);
  if (one.wrong !== null) console.log(one.wrong);
}
const wrong = [...done.values()].filter((one) => one.wrong !== null);
const codes = Object.entries(Object.groupBy(done.values(), ({ code }) => code)).map(
  ([code, of]) => `${of!.length} with ${code}`,
);
console.log(`${done.size} faults over ${calls} calls: ${wrong.length} not survived; first runs ended ${codes.join(", ")}`);
process.exit(wrong.length === 0 ? 0 : 1);

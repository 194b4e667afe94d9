// A stage process for tests: joins the run that its standard input names, says "joined", and does what it is asked: `backward`
// of pass n blocks the whole main thread for n milliseconds, as a kernel does. Says at its end why it ended.

import { joinRun } from "../../../src/bus/stage.ts";
import { connect, handlers, JOIN, REPORT } from "../bus.ts";

const { address, run, stage } = await Bun.stdin.json();
const connection = await connect(address, "stage");
const seat = await joinRun(connection, run, { stage, report: REPORT, ...JOIN });
console.log("joined");
seat.serve(
  handlers({
    backward: async ({ pass }) => {
      Bun.sleepSync(pass);
      return null;
    },
  }),
);
const error = await seat.ended;
console.log(error ? `${error.code}: ${error.message}` : "done");
await seat[Symbol.asyncDispose]();
await connection[Symbol.asyncDispose]();

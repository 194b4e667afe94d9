// A coordinator process for tests: starts a server of its own, prints where it is as JSON, gathers the stage that the test
// starts, and waits.

import { natsBus } from "../../../src/bus/coordinator.ts";
import { startServer } from "../../../src/cluster/server.ts";
import { connect, JOIN } from "../bus.ts";

const { run, stages } = await Bun.stdin.json();
process.on("SIGINT", () => console.log("interrupted"));
const server = await startServer();
console.log(JSON.stringify({ pid: server.pid, address: server.address }));
const connection = await connect(server.address, "coordinator");
if (stages > 0) {
  await natsBus(connection, run, stages, JOIN);
  console.log("gathered");
}
setInterval(() => {}, 1000);

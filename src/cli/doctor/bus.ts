// Whether several processes could work together here: a nats-server is started as a run starts it, a message goes round, and a
// thread beats.

import { now, sleep } from "../../base/clock.ts";
import { RunError } from "../../base/errors.ts";
import { startHeartbeat } from "../../bus/heartbeat.ts";
import { connectSealed, newRunKey } from "../../bus/seal.ts";
import { newRunId, subjectsOf } from "../../bus/subjects.ts";
import { startServer } from "../../cluster/server.ts";

const ROUNDS = 100;
const ROUNDS_MS = 5_000;

export type BusFindings = { readonly version: string; readonly roundMicroseconds: number };

/** Throws a RunError where any of it fails; leaves no process and no file. */
export async function checkBus(): Promise<BusFindings> {
  await using server = await startServer();
  await using connection = await connectSealed(server.address, "mlora doctor", newRunKey());
  const run = newRunId();
  await using _ = await startHeartbeat(connection, run, newRunId(), () => undefined);

  const { promise, resolve } = Promise.withResolvers<number>();
  const { hello } = subjectsOf(run);
  let rounds = 0;
  using __ = connection.subscribe(hello, (bytes) => {
    if (++rounds === ROUNDS) resolve(now());
    else connection.publish(hello, bytes.slice());
  });
  await connection.flush();
  const begin = now();
  connection.publish(hello, new Uint8Array(256));
  const end = await Promise.race([promise, sleep(ROUNDS_MS)]);
  if (end === undefined)
    throw new RunError("doctor.nats", `of ${ROUNDS} messages ${rounds} went round in ${ROUNDS_MS / 1000} s`);
  return { version: connection.version, roundMicroseconds: Math.round((1000 * (end - begin)) / ROUNDS) };
}

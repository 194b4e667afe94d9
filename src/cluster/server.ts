// The run's own nats-server: for this machine only, unless `host` and `port` are given, and with a random token.
//
// The token is in a file while the server starts, in a folder that this user alone may enter; then both are removed, and the
// token is in memory alone. The server dies with this process, however that ends (spawn.ts).

import { readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { assetPath } from "../base/assets.ts";
import { now, sleep } from "../base/clock.ts";
import { RunError } from "../base/errors.ts";
import { randomToken } from "../base/secret.ts";
import { newTemporaryFolder } from "../base/temporary.ts";
import type { Address } from "../bus/address.ts";
import { type Child, describeEnding, type Ending, startProgram } from "./spawn.ts";

const START_MS = 10_000;
/** It keeps nothing, so that nothing is lost when it is killed. */
const GRACE_MS = 500;
/** With Go's default collector it carries a fifth less: activations are garbage at once (docs/measurements/link.md). */
const ENVIRONMENT = { GOGC: "400" };
/** All addresses of this machine. */
const WILDCARDS = ["0.0.0.0", "[::]"];
const MAX_PAYLOAD = 8 * 2 ** 20;

export type ServerOptions = {
  readonly host?: string;
  readonly port?: number;
  readonly token?: string;
  /** For TLS, in PEM: a certificate, its key, and the certificate of its authority (default: itself). Null for none. */
  readonly certificate?: { readonly cert: string; readonly key: string; readonly ca?: string | undefined } | null;
};

export type Server = AsyncDisposable & {
  /** Where it listens, and the token: for `connect`, and for children through their standard input. */
  readonly address: Address;
  readonly pid: number;
  /** Resolves when it has ended, asked to or not. */
  readonly ended: Promise<Ending>;
};

/**
 * Starts a server and waits until it takes connections; disposing stops it and waits for its end. It listens to this machine
 * alone, on a free port, unless `host` and `port` are given. Throws a RunError: `nats.ended` where it is killed, else
 * `nats.start`.
 */
export async function startServer(options: ServerOptions = {}): Promise<Server> {
  const { host = "127.0.0.1", port = -1, token = randomToken(), certificate = null } = options;
  const program = assetPath("nats-server");
  const folder = newTemporaryFolder("nats");
  try {
    const file = join(folder, "server.conf");
    const write = (name: string, text: string) => writeFileSync(join(folder, name), text, { mode: 0o600, flag: "wx" });
    if (certificate) for (const name of ["cert", "key"] as const) write(`${name}.pem`, certificate[name]);
    write("server.conf", config(folder, `${host}:${port}`, token) + (certificate ? tlsConfig(folder) : ""));
    const child = startProgram(program, ["--config", file], { name: "nats-server", environment: ENVIRONMENT });
    try {
      const url = await listening(child, folder);
      // Its given name, which its certificate has, in place of the address that it reports.
      const servers = [WILDCARDS.includes(host) ? url : url.replace(/(?<=:\/\/).*(?=:\d+$)/, host)];
      return {
        address: { servers, login: { token }, tls: certificate && { ca: certificate.ca ?? certificate.cert } },
        pid: child.pid,
        ended: child.ended,
        [Symbol.asyncDispose]: async () => void (await child.stop(GRACE_MS)),
      };
    } catch (error) {
      await child.stop(0);
      throw error;
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Pings are rare and limits long: a stage that computes does not read, and heartbeats of a thread of its own show that it lives
 * (bus/heartbeat.ts).
 */
const config = (folder: string, listen: string, token: string): string => `
listen: "${listen}"
ports_file_dir: ${JSON.stringify(folder)}
authorization { token: ${JSON.stringify(token)} }
max_payload: ${MAX_PAYLOAD}
max_pending: ${32 * MAX_PAYLOAD}
write_deadline: "60s"
ping_interval: "20s"
ping_max: 5
`;

const tlsConfig = (folder: string): string => `
tls {
  cert_file: ${JSON.stringify(join(folder, "cert.pem"))}
  key_file: ${JSON.stringify(join(folder, "key.pem"))}
}
`;

/** Its URL, from the file that it writes when it listens. */
async function listening(child: Child, folder: string): Promise<string> {
  let ending: Ending | null = null;
  void child.ended.then((how) => {
    ending = how;
  });
  for (const limit = now() + START_MS; now() < limit; await sleep(5)) {
    if (ending) throw new RunError(wasKilled(ending) ? "nats.ended" : "nats.start", `nats-server ${describeEnding(ending)}`);
    const ports = readdirSync(folder).find((name) => name.endsWith(`_${child.pid}.ports`));
    const url = ports && urlIn(join(folder, ports));
    if (url) return url;
  }
  throw new RunError("nats.start", `nats-server did not listen within ${START_MS / 1000} s`);
}

/** Killed from outside, so that it may be started again; its own fault would come again. */
const wasKilled = ({ signal }: Ending): boolean => signal === "SIGKILL" || signal === "SIGTERM";

/** Null while the file is not yet whole. */
function urlIn(ports: string): string | null {
  try {
    return (JSON.parse(readFileSync(ports, "utf8")) as { nats: readonly string[] }).nats[0] ?? null;
  } catch {
    return null;
  }
}

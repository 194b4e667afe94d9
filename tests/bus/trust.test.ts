// Who may reach a run's server, and what crosses the network: certificates, and a word where there is none.

import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Address } from "../../src/bus/address.ts";
import { connect } from "../../src/bus/nats.ts";
import { startServer } from "../../src/run/server.ts";
import { needs } from "../helpers/needs.ts";
import { SUMS, unlike, Workplace } from "../helpers/program.ts";

/** A certificate that vouches for itself, and its key, in PEM; as scripts/launch makes them. */
function certificateFor(name: string) {
  const folder = mkdtempSync(join(tmpdir(), "mlora-certificate-"));
  try {
    const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
    const kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a test"];
    const made = Bun.spawnSync([
      ...["openssl", "req", "-x509", ...kind, "-addext", `subjectAltName=${name}`],
      ...["-keyout", key, "-out", cert],
    ]);
    expect([made.exitCode, made.exitCode === 0 ? "" : `${made.stderr}`]).toEqual([0, ""]);
    return { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The code of what `connect` throws; null where it connects, by TLS alone. */
async function refusal(address: Address): Promise<string | null> {
  try {
    await using connection = await connect(address, "test");
    expect(connection.encrypted).toBe(true);
    return null;
  } catch (error) {
    return (error as { code: string }).code;
  }
}

needs("nats")("a server that is not this run's", () => {
  test("is not trusted because it takes connections: without TLS where that was asked for, it is refused", async () => {
    await using server = await startServer();
    expect(await refusal({ ...server.address, tls: {} })).toBe("nats.tls");
  });

  needs("openssl")("with a certificate", () => {
    test.each([
      ["DNS:localhost", "localhost"],
      ["IP:127.0.0.1", "127.0.0.1"],
    ])("for %s is reached by that name, by who has the certificate", async (name, host) => {
      await using server = await startServer({ host, certificate: certificateFor(name) });
      const { servers, login } = server.address;
      expect(new URL(servers[0]!.replace("tls:", "http:")).hostname).toBe(host);
      expect(await refusal(server.address)).toBeNull();
      expect(await refusal({ servers, login, tls: { ca: certificateFor(name).cert } })).toBe("nats.tls");
      expect(await refusal({ servers, login, tls: null })).toBe("nats.tls"); // it has no other's word, either
    });

    test("for another name is refused", async () => {
      await using server = await startServer({ host: "localhost", certificate: certificateFor("DNS:elsewhere") });
      expect(await refusal(server.address)).toBe("nats.tls");
    });
  });
});

needs("nats")("a run that listens for others", () => {
  const secret = { MLORA_NATS_TOKEN: "t".repeat(32) };
  const listening = async (place: Workplace, listen: string, ...more: string[]) => {
    const path = place.project(unlike([2], "cpu"), SUMS);
    return place.start(["run", path, "--listen", listen, "--stages", "2", "--here", "2", ...more], secret).ended;
  };
  const aPort = (): number => {
    using server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    return server.port;
  };

  test("without a certificate does so on this machine alone, or --insecure, which it says", async () => {
    using place = new Workplace(2);
    const refused = await listening(place, "0.0.0.0:4222");
    expect([refused.code, refused.err]).toEqual([2, expect.stringContaining("error[nats.certificate]: --listen 0.0.0.0:4222")]);
    const port = aPort();
    const open = await listening(place, `0.0.0.0:${port}`, "--insecure");
    const notice = `notice: the connection to 0.0.0.0:${port} is not encrypted`;
    expect([open.code, open.err]).toEqual([0, expect.stringContaining(notice)]);
    const local = await listening(place, `127.0.0.1:${aPort()}`);
    expect([local.code, local.err]).toEqual([0, expect.not.stringContaining("encrypted")]);
    const alone = await place.mlora("run", place.project(unlike([2], "cpu"), SUMS), "--insecure");
    expect([alone.code, alone.err]).toEqual([2, expect.stringContaining("--insecure goes with --listen")]);
  });
});

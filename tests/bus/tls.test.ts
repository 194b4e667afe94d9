// A server with a certificate: what connects to it sends nothing to another that was put in its place.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect } from "../../src/bus/nats.ts";
import { startServer } from "../../src/cluster/server.ts";
import { needs } from "../helpers/needs.ts";

const folder = mkdtempSync(join(tmpdir(), "mlora-tls-"));
afterAll(() => rmSync(folder, { recursive: true }));

function openssl(...args: readonly string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(["openssl", ...args], { cwd: folder });
  if (exitCode !== 0) throw new Error(`${stderr}`);
}
const pem = (name: string) => readFileSync(join(folder, `${name}.pem`), "utf8");
const certificate = (name: string) => ({ cert: pem(name), key: pem(`${name}.key`) });

const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
const NEW = ["req", "-x509", ...KEY, "-days", "2"];
const LOCALHOST = "subjectAltName=DNS:localhost";
const made = (name: string) =>
  openssl(...NEW, "-subj", `/CN=${name}`, "-addext", LOCALHOST, "-out", `${name}.pem`, "-keyout", `${name}.key.pem`);

/** A port of this machine where something listens that gets a token if anything does. */
function impostor(info: object) {
  const heard: string[] = [];
  const greeting = `INFO ${JSON.stringify({ server_id: "X", version: "2.11.0", proto: 1, headers: true, max_payload: 2 ** 20, auth_required: true, ...info })}\r\n`;
  const server = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open: (socket) => void socket.write(greeting),
      data(socket, bytes) {
        heard.push(bytes.toString("latin1"));
        socket.write("PONG\r\n");
      },
    },
  });
  return { port: server.port, heard, [Symbol.dispose]: () => server.stop(true) };
}

needs("openssl")("a server with a certificate", () => {
  beforeAll(() => {
    made("ours");
    made("theirs");
    openssl("req", ...KEY, "-subj", "/CN=signed", "-out", "signed.csr", "-keyout", "signed.key.pem");
    writeFileSync(join(folder, "names"), `${LOCALHOST}\n`);
    const ca = ["-CA", "theirs.pem", "-CAkey", "theirs.key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names"];
    openssl("x509", "-req", "-in", "signed.csr", ...ca, "-out", "signed.pem");
  });

  test("which others vouch for is trusted by what vouches, and by nothing else", async () => {
    const ca = pem("theirs");
    await using server = await startServer({ host: "localhost", certificate: { ...certificate("signed"), ca } });
    await using _ = await connect(server.address, "test");
    const wrong = { ...server.address, tls: { ca: pem("ours") } };
    expect(await connect(wrong, "test").catch(({ code }) => code)).toBe("nats.tls");
  });

  test.each([
    ["that offers no TLS", {}],
    ["that says that it has TLS and has none", { tls_required: true }],
  ])("an impostor %s gets no token", async (_, info) => {
    using server = impostor(info);
    const address = {
      servers: [`tls://localhost:${server.port}`],
      login: { token: "a secret token" },
      tls: { ca: pem("ours") },
    };
    expect(await connect(address, "test").catch(({ code }) => code)).toMatch(/^nats\.(tls|timeout|connect)$/);
    expect(server.heard.join("")).not.toContain("CONNECT");
    expect(server.heard.join("")).not.toContain("secret");
  });
});

// Runs that are known on this machine: from when they begin, reachable or not, to when they end.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isLoopback } from "../../src/base/loopback.ts";
import { parseAddress } from "../../src/bus/address.ts";
import { newRunKey } from "../../src/bus/seal.ts";
import { announce, knownRuns } from "../../src/cluster/registry.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-registry-"));
const before = process.env["MLORA_CACHE"];
process.env["MLORA_CACHE"] = root;
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  rmSync(root, { recursive: true, force: true });
});

test("a run is known while its stages are opened, then where it answers, then no more", () => {
  const here = () => knownRuns().map(({ run, output, reach, pid }) => ({ run, output, reach, own: pid === process.pid }));
  const reach = { address: parseAddress("nats://127.0.0.1:4222"), key: newRunKey() };
  {
    using known = announce({ run: "tonight", output: "/out" });
    expect(here()).toEqual([{ run: "tonight", output: "/out", reach: null, own: true }]);
    known.reachable(reach);
    expect(here()).toEqual([{ run: "tonight", output: "/out", reach, own: true }]);
    known.reachable(null);
    expect(here()[0]!.reach).toBeNull();
  }
  expect(here()).toEqual([]);
});

test("only loopback is this machine to itself", () => {
  for (const host of ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", "::1"]) expect(isLoopback(host), host).toBe(true);
  for (const host of ["0.0.0.0", "[::]", "10.0.0.1", "127.example.com", "localhost.example.com", "my-localhost", "[::10]"])
    expect(isLoopback(host), host).toBe(false);
});

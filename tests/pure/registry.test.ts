// Runs that are known on this machine: from when they begin, reachable or not, to when they end.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseAddress } from "../../src/bus/address.ts";
import { announce, knownRuns } from "../../src/run/registry.ts";

const root = mkdtempSync(join(tmpdir(), "mlora-registry-"));
const before = process.env["MLORA_CACHE"];
process.env["MLORA_CACHE"] = root;
afterAll(() => {
  if (before === undefined) delete process.env["MLORA_CACHE"];
  else process.env["MLORA_CACHE"] = before;
  rmSync(root, { recursive: true, force: true });
});

test("a run is known while its stages are opened, then where it answers, then no more", () => {
  const here = () => knownRuns().map(({ run, output, address, pid }) => ({ run, output, address, own: pid === process.pid }));
  const address = parseAddress("nats://127.0.0.1:4222");
  {
    using known = announce({ run: "tonight", output: "/out" });
    expect(here()).toEqual([{ run: "tonight", output: "/out", address: null, own: true }]);
    known.reachable(address);
    expect(here()).toEqual([{ run: "tonight", output: "/out", address, own: true }]);
    known.reachable(null);
    expect(here()[0]!.address).toBeNull();
  }
  expect(here()).toEqual([]);
});

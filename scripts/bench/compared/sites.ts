// Python packages for a peer alone: a folder for PYTHONPATH, made without a network where the packages are at hand.

import { existsSync, mkdtempSync, readdirSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A command's output, for a person; throws where it fails. */
function run(command: readonly string[]): void {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { stdin: "ignore" });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}: ${stderr.toString().trim() || stdout}`);
}

/**
 * `from` is a folder of wheels, a folder of unpacked packages, a tar of such a folder, or what pip installs from its index.
 * Throws an Error where pip or tar fails.
 */
export function siteOf(from: string, python: readonly string[]): string {
  const isThere = existsSync(from);
  if (isThere && statSync(from).isDirectory()) {
    const wheels = readdirSync(from).filter((name) => name.endsWith(".whl"));
    if (wheels.length === 0) return from;
    const site = mkdtempSync(join(tmpdir(), "mlora-wheels-"));
    const offline = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", site];
    run([...python, ...offline, ...wheels.map((name) => join(from, name))]);
    return site;
  }
  const site = mkdtempSync(join(tmpdir(), "mlora-site-"));
  if (isThere) run(["tar", "--extract", "--file", from, "--directory", site]);
  else run([...python, "-m", "pip", "install", "--quiet", "--target", site, ...from.split(" ")]);
  return site;
}

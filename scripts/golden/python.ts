// A Python with the packages that a maker needs.

import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Maker } from "./index.ts";

/** Runs a command to its end and returns its output. Throws an Error with the last lines where it fails. */
export function call(command: readonly string[], cwd: string, env: Readonly<Record<string, string>> = {}): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...command], { cwd, env: { ...process.env, ...env } });
  const last = `${stdout}${stderr}`.trimEnd().split("\n").slice(-4).join("\n");
  if (exitCode !== 0) throw new Error(`${command.slice(0, 3).join(" ")} ended with ${exitCode}:\n${last}`);
  return stdout.toString();
}

/**
 * The Python of MLORA_GOLDEN_PYTHON, or of an environment with the maker's packages that is made in `cache` once. What the
 * first has in other versions is in `differences`. Throws an Error where packages cannot be installed, or a Python lacks one.
 */
export function pythonWith({ packages, python: version }: Maker, cache: string): { python: string; differences: string[] } {
  const python = process.env["MLORA_GOLDEN_PYTHON"] || environment(packages, cache);
  const names = packages.map((pin) => pin.split("==")[0]!);
  const ask = `import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps(["%d.%d" % sys.version_info[:2], *[version(name) for name in sys.argv[1:]]]))`;
  const [runs, ...found]: (string | null)[] = JSON.parse(call([python, "-c", ask, ...names], "/"));
  const missing = packages.filter((_, i) => found[i] === null);
  if (missing.length > 0) throw new Error(`${python} lacks ${missing.join(", ")}`);
  const differences = packages.flatMap((pin, i) =>
    pin === `${names[i]}==${found[i]}` ? [] : [`expected ${pin}, found ${found[i]}`],
  );
  if (version !== undefined && version !== runs) differences.push(`expected Python ${version}, found ${runs}`);
  return { python, differences };
}

function environment(packages: readonly string[], cache: string): string {
  const folder = join(cache, Bun.hash([...packages].sort().join("\n")).toString(16));
  const python = join(folder, "bin", "python");
  if (existsSync(join(folder, "whole"))) return python;
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(cache, { recursive: true });
  console.log(`golden: installing ${packages.join(", ")} (MLORA_GOLDEN_PYTHON=/path/to/python is taken as it is)`);
  call(["python3", "-m", "venv", folder], cache);
  call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ...packages], cache);
  writeFileSync(join(folder, "whole"), packages.join("\n"));
  return python;
}

// A copy of the sources with the example of a section of docs/extending.md, for tests that follow it as a contributor does.

import { expect } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const ROOT = join(import.meta.dir, "..", "..");
const PAGE = readFileSync(join(ROOT, "docs", "extending.md"), "utf8");

/** The code that a section shows, by the path in its first line. */
export function shownIn(section: string): Map<string, string> {
  const text = PAGE.split(/^## /m).find((part) => part.startsWith(section))!;
  const blocks = [...text.matchAll(/^( *)```(?:ts|c|python)\n([\s\S]*?)^ *```$/gm)].map(([, indent, code]) =>
    code!.replaceAll(new RegExp(`^${indent}`, "gm"), ""),
  );
  return new Map(blocks.map((code) => [/^(?:\/\/|#) (?:in )?(\S+)\n/.exec(code)![1]!, code]));
}

/** Sources that can be changed and run. Disposing removes them. */
export class CopyOfSources implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), "mlora-extending-"));

  constructor() {
    for (const name of ["src", "ffi", "tests/helpers", "package.json", "tsconfig.json"])
      cpSync(join(ROOT, name), this.at(name), {
        recursive: true,
        filter: (path) => !path.startsWith(join(ROOT, "ffi", "build")),
      });
    for (const name of ["node_modules", "ffi/build"]) symlinkSync(join(ROOT, name), this.at(name));
    this.edit("tsconfig.json", '"include": [', '"include": ["src", "ffi", "tests/helpers"], "unused": [');
  }

  /** Copies another file or folder of the checkout. */
  take(path: string): void {
    cpSync(join(ROOT, path), this.at(path), { recursive: true });
  }

  /** Makes ffi/build a folder of its own without our library, which is to be built from the copy's C. */
  ownLibrary(): void {
    rmSync(this.at("ffi/build"));
    mkdirSync(this.at("ffi/build"));
    const library = "ffi/build/libscipy_openblas.so";
    symlinkSync(join(ROOT, library), this.at(library));
  }

  at(path: string): string {
    return join(this.root, path);
  }

  write(path: string, text: string): void {
    writeFileSync(this.at(path), text);
  }

  edit(path: string, from: string, to: string): void {
    const text = readFileSync(this.at(path), "utf8");
    expect(text).toContain(from);
    this.write(
      path,
      text.replace(from, () => to),
    );
  }

  /** Source files that are new or changed. */
  touched(): string[] {
    const paths = (readdirSync(this.at("src"), { recursive: true }) as string[]).filter((path) => path.endsWith(".ts")).sort();
    const textOf = (root: string, path: string) => readFileSync(join(root, "src", path), "utf8");
    const known = new Set(readdirSync(join(ROOT, "src"), { recursive: true }) as string[]);
    return paths.filter((path) => !known.has(path) || textOf(ROOT, path) !== textOf(this.root, path));
  }

  run(...command: string[]): Promise<[code: number, out: string]> {
    return this.#run(command);
  }

  async #run(command: string[], environment: Readonly<Record<string, string>> = {}): Promise<[code: number, out: string]> {
    const env = { ...process.env, ...environment };
    const { exited, stdout } = Bun.spawn(command, { cwd: this.root, env, stdout: "pipe", stderr: "pipe" });
    return [await exited, await new Response(stdout).text()];
  }

  /** In one thread and with room for garbage, which is 0.55 of the CPU that the compiler takes otherwise. */
  check(): Promise<[code: number, out: string]> {
    return this.#run(["node_modules/.bin/tsc", "-p", ".", "--singleThreaded"], { GOGC: "400" });
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true });
  }
}

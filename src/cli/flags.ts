// Checked values of flags; errors are RequestErrors, `cli.flag`, that name the flag.

import { statSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { RequestError, textOf } from "../base/errors.ts";
import { nearest } from "../recipe/suggest.ts";

/** A whole number from `from` to `most`. */
export function wholeNumber(flag: string, value: unknown, from: number, most = 2 ** 32 - 1): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < from)
    throw new RequestError("cli.flag", `--${flag} is ${value}`, `give --${flag} a whole number, ${from} or more`);
  if (value > most)
    throw new RequestError("cli.flag", `--${flag} is ${value}`, `give --${flag} a whole number, ${most} at most`);
  return value;
}

export function oneOf<T extends string>(flag: string, value: string, allowed: readonly T[]): T {
  if (!allowed.includes(value as T))
    throw new RequestError("cli.flag", `--${flag} is '${value}'`, `it may be ${allowed.join(", ")}`);
  return value as T;
}

export const DEVICES = ["auto", "cpu", "cuda"] as const;
export const LINKS = ["auto", "ipc", "nccl", "shm", "nats"] as const;

/** The file that `flag` names; its folder has to be there before any long work. A RequestError is `cli.<flag>`. */
export function fileOf(flag: string, path: string): string {
  const wrong = (what: string, hint: string) => new RequestError(`cli.${flag}`, `--${flag} ${path}: ${what}`, hint);
  const kindOf = (of: string) => {
    try {
      return statSync(of, { throwIfNoEntry: false });
    } catch (error) {
      throw wrong(textOf(error), "name another file");
    }
  };
  if (path === "") throw wrong("names no file", "name one");
  if (!kindOf(dirname(resolve(path)))?.isDirectory())
    throw wrong(`the folder ${dirname(path)} is not there`, "make it, or name another file");
  const found = kindOf(resolve(path));
  if (found?.isDirectory()) throw wrong("is a folder", "name a file in it");
  if (found && !found.isFile()) throw wrong("is a device or a pipe, which would be replaced", "name a file");
  return path;
}

/** The same of an argument, which has no dashes. */
export function oneArgument<T extends string>(name: string, value: string, allowed: readonly T[]): T {
  if (allowed.includes(value as T)) return value as T;
  const meant = nearest(value, allowed);
  const hint = `${meant ? `did you mean '${meant}'? ` : ""}it may be ${allowed.join(", ")}`;
  throw new RequestError("cli.argument", `<${name}> is '${value}'`, hint);
}

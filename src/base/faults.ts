// What the system's refusal of a file call becomes: the path, the reason, the way out. None of these is a bug.

import { MloraError, RunError, textOf } from "./errors.ts";

const ANY: Readonly<Record<string, string>> = {
  EMFILE: "raise the limit of open files (ulimit -n)",
  ENFILE: "raise the machine's limit of open files (fs.file-max)",
  ENOMEM: "free some memory",
  ELOOP: "a link leads to itself: remove it, or have it lead to what it stands for",
};
const WRITING: Readonly<Record<string, string>> = {
  ...ANY,
  ENOSPC: "make room on the disk",
  EDQUOT: "make room in your quota",
  EACCES: "choose a folder that you may write to",
  EPERM: "choose a folder that you may write to",
  EROFS: "choose a folder on a disk that may be written",
  EIO: "check the disk (dmesg); choose a folder on another one",
  EFBIG: "raise the limit of a file's size (ulimit -f), or choose a disk for files as large",
};
const READING: Readonly<Record<string, string>> = {
  ...ANY,
  EACCES: "make it readable to you",
  EPERM: "make it readable to you",
  EIO: "check the disk (dmesg)",
  ESTALE: "mount its disk again",
};
/** Of faults that carry no way out. */
const OTHERS = ["ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "EINTR", "EBUSY", "ETIMEDOUT", "ENODEV", "ENXIO"];

const codeOf = (error: unknown): string => {
  const { code } = (error ?? {}) as { code?: unknown };
  return typeof code === "string" ? code : "";
};

/** The way out of a failed write, where there is one. */
export const hintOf = (error: unknown): string | undefined => WRITING[codeOf(error)];

/** The way out of a failed read, where there is one. */
export const readHintOf = (error: unknown): string | undefined => READING[codeOf(error)];

/** What a failed write becomes. */
export const writeError = (path: string, error: unknown): RunError =>
  new RunError("files.write", `cannot write ${path}: ${textOf(error)}`, hintOf(error), { cause: error });

/** What a failed read becomes; an error that says more already stays as it is. */
export const readError = (path: string, error: unknown): MloraError =>
  error instanceof MloraError
    ? error
    : new RunError("files.read", `cannot read ${path}: ${textOf(error)}`, readHintOf(error), { cause: error });

/** The last door: a refusal of the system that no other code has worded. Null for what is no such refusal. */
export function systemError(error: unknown): RunError | null {
  const code = codeOf(error);
  if (!(error instanceof Error) || !(code in WRITING || code in READING || OTHERS.includes(code))) return null;
  const { path } = error as { path?: unknown };
  const where = typeof path === "string" && !error.message.includes(path) ? `${path}: ` : "";
  return new RunError("files.system", `${where}${error.message}`, WRITING[code] ?? READING[code], { cause: error });
}

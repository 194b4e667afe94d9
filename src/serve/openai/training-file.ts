// What OpenAI's rules ask of training files besides what a row must be to be read at all: reported by line, before any row is
// tokenised.

import { createReadStream } from "node:fs";
import { counted } from "../../base/units.ts";
import { columnAt } from "../../session/rollouts/rewards.ts";
import { ApiError } from "../errors.ts";
import { type Method, methodOf } from "./methods.ts";

/** Faults that are reported before the rest is left unread. */
const SHOWN = 5;
const MOST_LINE = 64 << 20;

/**
 * Counts the rows of a file, which must have `columns`, too. Throws an ApiError, code `invalid_training_file`, that names the
 * lines at fault.
 */
export async function checkTrainingFile(
  path: string,
  method: Method,
  least: number,
  param: string,
  columns: readonly string[] = [],
): Promise<number> {
  const faults: string[] = [];
  const invalid = (message: string) => new ApiError(400, message, { param, code: "invalid_training_file" });
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let [rows, line] = [0, 0];
  const check = (bytes: Buffer): void => {
    line++;
    let text: string;
    try {
      text = decoder.decode(bytes).trim();
    } catch {
      faults.push(`line ${line}: is not UTF-8 text`);
      return;
    }
    if (text === "") return;
    rows++;
    const fault = faultOf(text, method, columns);
    if (fault !== null) faults.push(`line ${line}: ${fault}`);
  };
  let held: Buffer[] = [];
  let size = 0;
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 18 }) as AsyncIterable<Buffer>) {
    let from = 0;
    for (let at = piece.indexOf(10); at >= 0; at = piece.indexOf(10, from)) {
      check(Buffer.concat([...held, piece.subarray(from, at)]));
      [held, size, from] = [[], 0, at + 1];
      if (faults.length === SHOWN) break;
    }
    if (faults.length === SHOWN) break;
    held.push(piece.subarray(from));
    size += piece.length - from;
    if (size > MOST_LINE) throw invalid(`line ${line + 1} is longer than ${MOST_LINE} bytes`);
  }
  if (size > 0 && faults.length < SHOWN) check(Buffer.concat(held));
  if (faults.length > 0)
    throw invalid(`${faults.join("; ")}${faults.length === SHOWN ? "; later lines were not checked" : ""}`);
  if (rows < least) throw invalid(`The file has ${counted(rows, "row")}, expected ${least} or more.`);
  return rows;
}

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function faultOf(text: string, method: Method, columns: readonly string[]): string | null {
  let row: unknown;
  try {
    row = JSON.parse(text);
  } catch {
    return "is not JSON";
  }
  if (!isObject(row)) return "is not a JSON object";
  if ("functions" in row) return "has 'functions', the old form: give 'tools'";
  const { rows } = methodOf(method);
  if (rows === "prompts") {
    const { messages } = row;
    const lacking = columns.find((path) => columnAt(row, path) === undefined);
    const answered = Array.isArray(messages) && messages.at(-1)?.role === "assistant";
    return (
      turnsFault(messages, "messages", false) ??
      (answered ? "ends with the message of the assistant that is to be learned: leave it out" : null) ??
      (lacking === undefined ? null : `has no '${lacking}', which the grader reads`)
    );
  }
  if (rows === "turns") {
    if ("preferred_output" in row) return "is a preference: train it with method dpo";
    if (!("messages" in row)) return "prompt" in row && "completion" in row ? null : "has no 'messages'";
    return turnsFault(row["messages"], "messages", true);
  }
  const { input, preferred_output: better, non_preferred_output: worse } = row;
  if (!isObject(input)) return "has no object 'input'";
  return (
    turnsFault(input["messages"], "input.messages", false) ??
    turnsFault(better, "preferred_output", true) ??
    turnsFault(worse, "non_preferred_output", true)
  );
}

function turnsFault(turns: unknown, name: string, isAnswered: boolean): string | null {
  if (!Array.isArray(turns) || turns.length === 0) return `has no list of messages in '${name}'`;
  const odd = turns.findIndex((turn) => !isObject(turn));
  if (odd >= 0) return `has no object in ${name}[${odd}]`;
  const called = turns.findIndex((turn) => turn["function_call"] != null || turn["role"] === "function");
  if (called >= 0) return `has the old form of a function call in ${name}[${called}]: give 'tool_calls'`;
  if (isAnswered && turns.at(-1).role !== "assistant") return `ends in '${name}' with a message that is not the assistant's`;
  return null;
}

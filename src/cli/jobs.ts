// `mlora jobs`: the jobs of a server: listed, watched, paused, resumed, cancelled, and what they have trained fetched.

import { existsSync, mkdirSync, readdirSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import * as v from "valibot";
import { writeFileAtomic } from "../base/atomic.ts";
import { sleep } from "../base/clock.ts";
import { RequestError, RunError } from "../base/errors.ts";
import { ownPlace } from "../base/source-name.ts";
import { jsonText, visible, writeStderr, writeStdout } from "../base/terminal.ts";
import { count, counted, shortPath } from "../base/units.ts";
import { Named, ServerClient, type ServerFlags } from "./server-client.ts";
import { table } from "./table.ts";

export type JobsFlags = ServerFlags & { readonly output?: unknown; readonly json?: boolean };

const text = v.nullable(v.string());
/** With what else a server says of it, for --json. */
const Job = v.looseObject({
  ...Named.entries,
  status: v.string(),
  fine_tuned_model: text,
  user_provided_suffix: text,
  error: v.nullable(v.object({ message: v.string() })),
});
type Job = v.InferOutput<typeof Job>;
const Event = v.object({ ...Named.entries, message: v.string() });
type Event = v.InferOutput<typeof Event>;
/** One that says that more follow names the last so far. */
const pageOf = <T>(item: v.GenericSchema<unknown, T>) =>
  v.pipe(
    v.object({ data: v.array(item), has_more: v.boolean() }),
    v.check(({ data, has_more }) => data.length > 0 || !has_more),
  );
const Files = v.object({ data: v.array(v.object({ name: v.string(), bytes: v.number() })) });

const JOBS = "/v1/fine_tuning/jobs";
const ACTIONS = ["list", "watch", "pause", "resume", "cancel", "fetch"] as const;
type Action = (typeof ACTIONS)[number];
const WATCH_MS = 500;
const OVER = /^(succeeded|failed|cancelled)$/;

/** `action` on `named`: a job's id, the beginning of one, or the name of its adapter. */
export async function jobs(action: string | undefined, named: string | undefined, flags: JobsFlags): Promise<void> {
  const chosen = (action ?? "list") as Action;
  if (!ACTIONS.includes(chosen))
    throw new RequestError("jobs.action", `'${action}' is not one of ${ACTIONS.join(", ")}`, "as in mlora jobs watch JOB");
  const server = new ServerClient(flags);
  if (chosen === "list") return list(await allJobs(server), flags.json ?? false);
  if (named === undefined) throw new RequestError("jobs.job", `mlora jobs ${chosen} names no job`, "mlora jobs lists them");
  const job = found(await allJobs(server), `${named}`);
  if (chosen === "watch") return await watchJobs(server, [job.id]);
  if (chosen === "fetch") return await fetchAdapter(server, job, flags.output);
  const { status } = await server.json(`${JOBS}/${job.id}/${chosen}`, Job, {});
  writeStdout(`${nameOf(job)}: ${status}\n`);
}

async function allJobs(server: ServerClient): Promise<Job[]> {
  const all: Job[] = [];
  for (;;) {
    const after = all.length > 0 ? `&after=${all.at(-1)!.id}` : "";
    const { data, has_more } = await server.json(`${JOBS}?limit=100${after}`, pageOf(Job));
    all.push(...data);
    if (!has_more) return all;
  }
}

const nameOf = ({ id, user_provided_suffix }: Job): string => (user_provided_suffix ? `${user_provided_suffix} (${id})` : id);

function list(all: readonly Job[], isJson: boolean): void {
  const columns = [
    { title: "job", of: ({ id }: Job) => id },
    { title: "adapter", of: ({ user_provided_suffix: name }: Job) => name ?? "-" },
    { title: "status", of: ({ status }: Job) => status },
    { title: "model", of: ({ fine_tuned_model: model, error }: Job) => model ?? error?.message.split("\n")[0] ?? "-" },
  ];
  const lines = all.length === 0 ? "the server has no job of this key" : table<Job>(columns, all).join("\n");
  writeStdout(`${isJson ? jsonText(all, 2) : lines}\n`);
}

/** Throws a RequestError, `jobs.job`, where none or several are meant. */
function found(all: readonly Job[], named: string): Job {
  const exact = all.find(({ id }) => id === named);
  const meant = exact ? [exact] : all.filter((job) => job.id.startsWith(named) || job.user_provided_suffix === named);
  if (meant.length === 1) return meant[0]!;
  const what = meant.length === 0 ? "no job" : `${counted(meant.length, "job")}: ${meant.map(({ id }) => id).join(", ")}`;
  throw new RequestError("jobs.job", `'${named}' names ${what}`, "name one by its id; mlora jobs lists them");
}

/** Prints the events of jobs until all are over. Throws a RunError, `jobs.failed`, where one did not succeed. */
export async function watchJobs(server: ServerClient, ids: readonly string[]): Promise<void> {
  const seen = new Map(ids.map((id) => [id, new Set<string>()]));
  const open = new Set(ids);
  const failed: string[] = [];
  for (; open.size > 0; await sleep(WATCH_MS))
    for (const id of [...open]) {
      const job = await server.json(`${JOBS}/${id}`, Job); // before its events: none comes after its end
      const label = job.user_provided_suffix ?? id;
      for (const event of await newEvents(server, id, seen.get(id)!)) writeStderr(`${label}: ${visible(event.message)}\n`);
      if (!OVER.test(job.status)) continue;
      open.delete(id);
      if (job.status === "succeeded") writeStdout(`${label}: ${job.fine_tuned_model}\n`);
      else failed.push(`${label} ${job.status}${job.error ? `: ${job.error.message}` : ""}`);
    }
  if (failed.length > 0) throw new RunError("jobs.failed", failed.join("\n"));
}

/** Events that were not seen before, oldest first; they come newest first, a page at a time. */
async function newEvents(server: ServerClient, job: string, seen: Set<string>): Promise<Event[]> {
  const found: Event[] = [];
  for (let after = ""; ; ) {
    const { data, has_more } = await server.json(`${JOBS}/${job}/events?limit=100${after}`, pageOf(Event));
    const fresh = data.filter(({ id }) => !seen.has(id));
    found.push(...fresh);
    if (!has_more || fresh.length < data.length) break;
    after = `&after=${data.at(-1)!.id}`;
  }
  for (const { id } of found) seen.add(id);
  return found.reverse();
}

/** Writes the adapter's files into a folder that is new or empty. */
async function fetchAdapter(server: ServerClient, job: Job, output: unknown): Promise<void> {
  const folder = resolve(
    output === undefined ? (job.user_provided_suffix ?? job.id) : ownPlace("jobs.output", "output", `${output}`),
  );
  if (statSync(folder, { throwIfNoEntry: false })?.isDirectory() === false)
    throw new RequestError("jobs.output", `${shortPath(folder)} is no folder`, "give --output a folder that is new or empty");
  if (existsSync(folder) && readdirSync(folder).length > 0)
    throw new RequestError("jobs.output", `${shortPath(folder)} is not empty`, "give --output a folder that is new or empty");
  const path = `${JOBS}/${job.id}/adapter`;
  const { data } = await server.json(path, Files);
  const files = new Map<string, Uint8Array>();
  for (const { name, bytes } of data) {
    const content = await server.bytes(`${path}/${encodeURIComponent(name)}`);
    if (!/^[\w.-]+$/.test(name) || content.length !== bytes)
      throw new RunError(
        "server.answer",
        `the file '${visible(name)}' came with ${counted(content.length, "byte")}, expected ${count(bytes)}`,
      );
    files.set(name, content);
  }
  mkdirSync(folder, { recursive: true });
  for (const [name, content] of files) writeFileAtomic(join(folder, name), content);
  writeStdout(`${shortPath(folder)}\n`);
}

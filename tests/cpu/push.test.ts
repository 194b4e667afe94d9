// `mlora push`: what goes to a hub is what huggingface_hub sends, and nothing that is not listed; the hub's client reads the
// card.

import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pushFiles } from "../../src/sources/hub/push.ts";
import { Workplace } from "../helpers/program.ts";
import { cardOfAllParts } from "../helpers/push-card.ts";
import { type Sent, servePush } from "../helpers/push-server.ts";

const GOLDEN = join(import.meta.dir, "../golden/push");
const golden: {
  files: Record<string, string>;
  card: { text: string; found: object };
  cases: Record<"whole" | "parts", Sent[]>;
} = JSON.parse(readFileSync(join(GOLDEN, "sent.json"), "utf8"));
const files = Object.entries(golden.files).map(([path, hex]) => ({ path, bytes: new Blob([Buffer.from(hex, "hex")]) }));
const place = new Workplace(1);
const root = mkdtempSync(join(tmpdir(), "mlora-push-"));
afterAll(() => {
  place[Symbol.dispose]();
  rmSync(root, { recursive: true, force: true });
});

const withoutHosts = (sent: readonly Sent[]) =>
  JSON.parse(JSON.stringify(sent).replaceAll(/http:\/\/127\.0\.0\.1:\d+/g, "http://host"));
const hubOf = ({ endpoint, token }: { endpoint: string; token: string }) => ({ endpoint, token, cache: "", offline: false });

test.each(["whole", "parts"] as const)("files go as huggingface_hub sends them: %s", async (how) => {
  using server = servePush({ partBytes: how === "parts" ? 1000 : 0 });
  const push = { hub: hubOf(server), repo: "me/adapter", files, isPrivate: true, revision: "main", summary: "Upload" };
  const { url } = await pushFiles(push);
  expect(url).toContain(`${server.endpoint}/me/adapter/commit/`);
  const shape = ({ host, method, path, token, body }: Sent) => ({ host, method, path, token, body });
  expect(withoutHosts(server.sent).map(shape)).toEqual(golden.cases[how].map(shape));
  const { visibility, files: stored } = server.repos.get("me/adapter")!;
  expect(visibility).toBe("private");
  for (const [path, hex] of Object.entries(golden.files)) expect(stored.get(path)!.toString("hex")).toBe(hex);
  // once more: the repository is there, and the large file's bytes, which do not go again
  const before = server.sent.length;
  await pushFiles(push);
  expect(server.sent.slice(before).map(({ host }) => host)).toEqual(["hub", "hub", "hub", "hub"]);
});

test("what passes is tried again; a token without the right is one error", async () => {
  using server = servePush({ gone: [503, 429] });
  const push = { hub: hubOf(server), repo: "me/adapter", files, isPrivate: true, revision: "main", summary: "Upload" };
  await pushFiles(push);
  expect(server.repos.get("me/adapter")!.files.size).toBe(3);
  expect(pushFiles({ ...push, hub: { ...push.hub, token: "hf_reader" } })).rejects.toThrow("does not let this token write");
  expect(pushFiles({ ...push, repo: "others/adapter" })).rejects.toThrow("others");
});

test("the card is the one that huggingface_hub was shown, and found all of it", () => {
  expect(cardOfAllParts()).toBe(golden.card.text);
  expect(golden.card.found).toEqual({
    ...{ base_model: "org/base", base_model_relation: "adapter", library_name: "peft", pipeline_tag: "text-generation" },
    ...{ license: "apache-2.0", datasets: ["org/rows"], tags: ["base_model:adapter:org/base", "lora", "mlora"] },
    results: [
      ["loss", 0.0064],
      ["exact_match", 0.98],
    ],
  });
});

const COMPARES = `objective = { name = "dpo", reference = "/home/me/before" }
metrics = { command = ["python3", "/home/me/score.py"] }
data = { split = 0.5, train = ["/home/me/rows.jsonl", { dataset = "org/rows", split = "test" }, "https://host.example/more.jsonl?key=private"] }
`;

/** A run's folder with an adapter that ended; `own`: of its keys. */
function runFolder(own = COMPARES): string {
  const run = mkdtempSync(join(root, "run-"));
  const adapter = join(run, "dates");
  mkdirSync(adapter);
  writeFileSync(
    join(adapter, "adapter_config.json"),
    JSON.stringify({ peft_type: "LORA", base_model_name_or_path: place.model, r: 2 }),
  );
  writeFileSync(join(adapter, "adapter_model.safetensors"), Buffer.alloc(3000, 7));
  writeFileSync(join(adapter, "secret.txt"), "a password");
  writeFileSync(
    join(run, "recipe.toml"),
    `[model]
path = "${place.model}"
[run]
output = "."
[[adapter]]
name = "dates"
rank = 2
seed = 5
steps = 1
chat_template = "/home/me/chat.jinja"
${own}`,
  );
  return adapter;
}

test("the listed files alone are pushed, without paths of this machine", async () => {
  using server = servePush();
  const adapter = runFolder();
  const environment = { HF_ENDPOINT: server.endpoint, HF_TOKEN: server.token, HF_HUB_OFFLINE: "" };
  const run = (...args: readonly string[]) => place.start(["push", adapter, "me/dates", ...args], environment).ended;
  const unnamed = await run();
  expect([unnamed.code, unnamed.err]).toEqual([2, expect.stringContaining("give --base owner/name")]);
  const dry = await run("--base", "org/base", "--dry-run");
  expect([dry.code, server.sent.length]).toEqual([0, 0]);
  for (const listed of ["README.md", "adapter_config.json", "adapter_model.safetensors", 'base_model: "org/base"'])
    expect(dry.out).toContain(listed);
  const { code, out, err } = await run("--base", "org/base", "--json");
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  expect(JSON.parse(out).commit).toBe("c".repeat(40));
  const { files: stored, visibility } = server.repos.get("me/dates")!;
  expect([visibility, [...stored.keys()].sort()]).toEqual([
    "private",
    ["README.md", "adapter_config.json", "adapter_model.safetensors"],
  ]);
  expect(dry.out.endsWith(stored.get("README.md")!.toString())).toBe(true);
  expect(JSON.parse(stored.get("adapter_config.json")!.toString())).toMatchObject({
    base_model_name_or_path: "org/base",
    r: 2,
  });
  const all = [...stored.values()].map((bytes) => bytes.toString("latin1")).join();
  for (const path of [place.root, root, "/home/me", "score.py", "key=private"]) expect(all).not.toContain(path);
  for (const said of ["`rows.jsonl`, `org/rows`, `https://host.example/more.jsonl?...`", 'datasets:\n- "org/rows"\n'])
    expect(all).toContain(said);
  for (const said of ["| chat_template | chat.jinja |", '"reference":"before"', "| rank | 2 |"]) expect(all).toContain(said);
  expect([out, err, dry.out].join()).not.toContain(server.token);
});

test("a repository is public, and a branch other than main, where flags say so", async () => {
  using server = servePush();
  const environment = { HF_ENDPOINT: server.endpoint, HF_TOKEN: server.token, HF_HUB_OFFLINE: "" };
  const adapter = runFolder();
  const run = (...args: readonly string[]) =>
    place.start(["push", adapter, "me/open", "--base", "org/base", ...args], environment).ended;
  expect((await run("--dry-run")).out).toContain("(private if it is new)");
  expect((await run("--public", "--dry-run")).out).toContain("(public if it is new)");
  const { code, err } = await run("--public", "--revision", "trial");
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  expect(server.repos.get("me/open")!.visibility).toBe("public");
  const commits = server.sent.map(({ path }) => path).filter((path) => path.includes("/commit/"));
  expect(commits).toEqual(["/api/models/me/open/commit/trial"]);
});

test("a card has the settings of learning from rewards, and no program or address of them", async () => {
  const reward = '[{ command = ["python3", "/home/me/score.py"] }, { url = "https://host.example/score?key=private" }]';
  const objective = `{ name = "grpo", reward = ${reward}, generations = 3, max_new_tokens = 16 }`;
  const adapter = runFolder(`data = "rows.jsonl"\nobjective = ${objective}\n`);
  const environment = { HF_ENDPOINT: "http://127.0.0.1:9", HF_TOKEN: "hf_none", HF_HUB_OFFLINE: "" };
  const { code, out, err } = await place.start(["push", adapter, "me/dates", "--base", "org/base", "--dry-run"], environment)
    .ended;
  expect([code, code === 0 ? "" : err]).toEqual([0, ""]);
  expect(out).toContain('"generations":3');
  for (const own of ["score.py", "host.example/score", "key=private"]) expect(out).not.toContain(own);
});

test("without a token nothing is sent", async () => {
  using server = servePush();
  const environment = { HF_ENDPOINT: server.endpoint, HF_TOKEN: "", HF_HOME: root, HF_HUB_OFFLINE: "" };
  const { code, err } = await place.start(["push", runFolder(), "me/dates", "--base", "org/base"], environment).ended;
  expect([code, err]).toEqual([2, expect.stringContaining("set HF_TOKEN")]);
  expect(server.sent).toEqual([]);
});

// Rewards of answers, as programs and addresses give them: what fails is asked again, ends in one error, and leaves nothing
// running.

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { range } from "../../src/base/shape.ts";
import { allRewards, type NamedReward } from "../../src/session/rollouts/rewards.ts";
import { withoutSecrets } from "../../src/session/trackers/public-settings.ts";
import { until } from "../helpers/bus.ts";

const HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
/** What a connection gets, by its path. */
const ANSWERS: Readonly<Record<string, (to: Socket) => void>> = {
  right: (to) => to.end(`${HEAD}content-length: 5\r\n\r\n[1,2]`),
  broken: (to) => {
    to.write(`${HEAD}content-length: 500\r\n\r\n[1,`);
    setTimeout(() => to.resetAndDestroy(), 20);
  },
  silent: (to) => to.write(`${HEAD}content-length: 500\r\n\r\n[1,`),
  endless: (to) => {
    to.write(`${HEAD}\r\n[`);
    const more = () => {
      while (!to.destroyed && to.write("1,".repeat(1 << 15)));
    };
    to.on("drain", more);
    more();
  },
};
const root = mkdtempSync(join(tmpdir(), "mlora-rewards-"));
const asked: string[] = [];
let server: Server;
beforeAll(async () => {
  server = createServer((to) => {
    to.on("error", () => to.destroy());
    to.once("data", (bytes) => {
      const path = /^POST \/(\w+)/.exec(bytes.toString())![1]!;
      asked.push(path);
      ANSWERS[path]!(to);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterAll(() => {
  server.close();
  rmSync(root, { recursive: true });
});

const at = (name: string, seconds = 60): NamedReward => {
  const { port } = server.address() as { port: number };
  return { url: `http://127.0.0.1:${port}/${name}?key=private`, name, weight: 1, seconds };
};
const program = (name: string, script: string): NamedReward => ({ command: ["sh", "-c", script], name, weight: 1 });
const TWO = ["a", "b"].map((completion) => ({ prompt: "p", completion, columns: "{}" }));
const rewardsOf = (...rewards: readonly NamedReward[]) => {
  const notices: string[] = [];
  const found = allRewards(rewards, TWO, (text) => void notices.push(text), new AbortController().signal);
  return { found, notices };
};

describe("an address", () => {
  test("gives a number for each answer", async () => {
    expect(await rewardsOf(at("right")).found).toEqual([[1, 2]]);
  });

  test.each([
    ["whose answer breaks off", "broken", 60, /broke off/],
    ["whose answer does not end in time", "silent", 1, /did not answer within 1 s/],
    ["whose answer has no end", "endless", 60, /expected a JSON list, found "\[1,1/],
  ])("%s is asked again, and then ends its adapter alone", async (_, name, seconds, said) => {
    asked.length = 0;
    const { found, notices } = rewardsOf(at(name, seconds));
    const error = await found.catch((error: unknown) => error);
    expect(error).toMatchObject({ code: "reward.failed", message: expect.stringMatching(said) });
    expect([(error as Error).message, ...notices].join()).not.toContain("private");
    expect([asked.length, notices.length]).toEqual([3, 2]);
  });
});

test("a limit of time beyond a timer's own lets them answer", async () => {
  const seconds = 3e20;
  const both = [at("right", seconds), { ...program("prints", "cat >/dev/null; echo 1; echo 2"), seconds }] as const;
  const { found, notices } = rewardsOf(...both);
  expect(await found).toEqual(range(2).map(() => [1, 2]));
  expect(notices).toEqual([]);
});

test("where one reward fails, the programs of the others have ended when that is known", async () => {
  const file = join(root, "pid");
  const { found } = rewardsOf(
    program("slow", `echo $$ >${file}; exec sleep 600`),
    program("fails", `cat >/dev/null; test -s ${file}; exit 3`),
  );
  expect(await found.catch((error: unknown) => error)).toMatchObject({
    code: "reward.failed",
    message: expect.stringContaining("'fails'"),
  });
  const pid = readFileSync(file, "utf8").trim();
  await until("the program is gone", 60_000, () => !existsSync(`/proc/${pid}`));
});

test("settings for others have addresses without a user and a query", () => {
  const reward = [{ url: "https://me:word@host.example/score?key=private", weight: 2 }, { command: ["python3", "x.py"] }];
  expect(
    withoutSecrets({ data: ["https://host.example/r.jsonl?key=private", "r.jsonl"], objective: { reward }, rank: 4 }),
  ).toEqual({
    data: ["https://host.example/r.jsonl?...", "r.jsonl"],
    objective: { reward: [{ url: "https://host.example/score?...", weight: 2 }, { command: ["python3", "x.py"] }] },
    rank: 4,
  });
});

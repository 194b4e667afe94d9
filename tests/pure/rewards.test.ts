// Rewards of answers: what keeps one from coming is a fault of that reward, in its time, whatever it is.

import { afterAll, expect, test } from "bun:test";
import { createServer, type Socket } from "node:net";
import { RunError } from "../../src/base/errors.ts";
import { type NamedReward, rewardsFrom } from "../../src/session/rewards.ts";

const HEAD = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n";
/** Begins an answer, and then does as the path says. */
const server = createServer((socket: Socket) => {
  socket.on("error", () => undefined);
  socket.on("data", (bytes) => {
    if (!String(bytes).startsWith("POST")) return;
    if (String(bytes).startsWith("POST /broken")) socket.end(`${HEAD}[1, `);
    else if (String(bytes).startsWith("POST /stalled")) socket.write(`${HEAD}[1, `);
    else socket.write(`${HEAD}[1, -2]`);
  });
});
await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
afterAll(() => void server.close());
const { port } = server.address() as { readonly port: number };

const asked = ["a", "b"].map((completion) => ({ prompt: "p", completion, columns: "{}" }));
async function outcome(reward: object) {
  const notices: string[] = [];
  const named = { name: "r", weight: 1, ...reward } as NamedReward;
  const found = await rewardsFrom(named, asked, (text) => notices.push(text), new AbortController().signal).catch(
    (error: unknown) => error,
  );
  return { found, notices };
}

test.each([
  ["broken", "its answer breaks off"],
  ["stalled", "no whole answer after 0.5 s"],
])(
  "an answer that is %s is asked for again, and then is missing",
  async (path, why) => {
    const { found, notices } = await outcome({ url: `http://127.0.0.1:${port}/${path}`, seconds: 0.5 });
    expect(found).toBeInstanceOf(RunError);
    expect(found).toMatchObject({ code: "reward.failed", message: expect.stringContaining(why) });
    expect(notices.length).toBe(2);
  },
  60_000,
);

test.each([{ url: `http://127.0.0.1:${port}/` }, { command: ["sh", "-c", "cat >/dev/null; echo 1; echo -2"] }])(
  "a limit of time beyond that of timers is none: %j",
  async (reward) => {
    expect(await outcome({ ...reward, seconds: 3e20 })).toEqual({ found: [1, -2], notices: [] });
  },
  60_000,
);

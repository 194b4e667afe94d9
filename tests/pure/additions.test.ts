// Additions that take longer than an answer: what each came to is reported under its ticket.

import { expect, test } from "bun:test";
import { Additions, type Work } from "../../src/session/additions.ts";
import { until } from "../helpers/bus.ts";

const SOON = { answerMs: 1, goneMs: 1 };
/** One that is under way until it is dropped. */
const endless: Work = (signal) =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

test("what an addition came to is reported however late it is asked for; one that is under way is dropped", async () => {
  const additions = new Additions(SOON);
  const [added, refused] = [Promise.withResolvers<string>(), Promise.withResolvers<string>()];
  const tickets: string[] = [];
  for (const { promise, settle } of [
    { promise: added.promise, settle: () => added.resolve("late: added") },
    { promise: refused.promise, settle: () => refused.reject(new Error("its name is taken")) },
  ]) {
    const answer = await additions.begin(() => promise);
    settle();
    if (typeof answer === "string") throw new Error(`answered with ${answer}`);
    tickets.push(answer.ticket);
  }
  let isDropped = false;
  const later = await additions.begin((signal, progress) => {
    signal.addEventListener("abort", () => {
      isDropped = true;
    });
    return endless(signal, progress);
  });
  await until("the last one is dropped", 60_000, () => isDropped); // so the time of the first ones is over, too
  expect(await additions.ask(tickets[0]!)).toBe("late: added");
  await expect((async () => additions.ask(tickets[1]!))()).rejects.toThrow("its name is taken");
  const { ticket } = later as { readonly ticket: string };
  expect(() => additions.ask(ticket)).toThrow(expect.objectContaining({ code: "control.ticket" }));
  expect(() => additions.ask(tickets[0]!)).toThrow(); // told once
});

test("outcomes that are never asked for are bounded in number, the newest are kept", async () => {
  const additions = new Additions(SOON);
  const tickets: string[] = [];
  for (let i = 0; i < 130; i++) {
    const { promise, resolve } = Promise.withResolvers<string>();
    const answer = await additions.begin(() => promise);
    if (typeof answer === "string") throw new Error(`answered with ${answer}`);
    tickets.push(answer.ticket);
    resolve(`${i}`);
    await promise;
  }
  expect(await additions.ask(tickets.at(-1)!)).toBe("129");
  expect(await additions.ask(tickets[40]!)).toBe("40");
  expect(() => additions.ask(tickets[0]!)).toThrow(expect.objectContaining({ code: "control.ticket" }));
});

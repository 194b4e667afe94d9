// What a client gives to the chat template is read as rows of training are: the same JSON makes the same text.

import { expect, test } from "bun:test";
import * as v from "valibot";
import { Template } from "../../src/data/jinja.ts";
import { exactOf } from "../../src/serve/body.ts";
import { type ChatBody, chatRoutes } from "../../src/serve/openai/chat.ts";

const LIMITS = { bytes: 1 << 20, seconds: 10 };
const asked = (body: string) => new Request("http://127.0.0.1/", { method: "POST", body });

test("a body is plain numbers by its schema, and as it is written besides", async () => {
  const schema = v.object({ n: v.pipe(v.number(), v.integer()), more: v.record(v.string(), v.unknown()) });
  const { body, exact } = await exactOf(asked('{"n": 2.0, "more": {"10": 1.0, "9": 12345678901234567890}}'), schema, LIMITS);
  expect(body.n).toBe(2);
  expect(new Template("{{ more }}").render(exact)).toBe("{'10': 1.0, '9': 12345678901234567890}");
  await expect(exactOf(asked("{"), schema, LIMITS)).rejects.toMatchObject({ status: 400 });
  await expect(exactOf(asked('{"n": 2.5}'), schema, LIMITS)).rejects.toMatchObject({ status: 400 });
});

test("tools, turns and arguments of the template reach it with their digits", async () => {
  const text = `{"model": "m", "temperature": 1.0, "chat_template_kwargs": {"effort": 1.0},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": 0.0, "10": 1, "9": 2}}}],
    "messages": [{"role": "user", "content": "a", "rank": 3.0}]}`;
  let seen: Record<string, unknown> = {};
  const texts = {
    hasChatTemplate: true,
    chatIds: (fields: Record<string, unknown>) => {
      seen = fields;
      throw new Error("seen");
    },
  };
  const [route] = chatRoutes({ texts } as never);
  const handler = route!.handler as unknown as (call: object) => Promise<unknown>;
  const call = { tenant: "t", exact: (schema: typeof ChatBody) => exactOf(asked(text), schema, LIMITS) };
  await expect(handler(call)).rejects.toThrow("seen");
  const template = new Template("{{ tools | tojson }} {{ chat_template_kwargs.effort }} {{ messages[0].rank }}");
  expect(template.render(seen)).toBe(
    '[{"type": "function", "function": {"name": "f", "parameters": {"minimum": 0.0, "10": 1, "9": 2}}}] 1.0 3.0',
  );
});

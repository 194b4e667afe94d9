// The server of the tests for tests/golden/push/make.py: prints its address, and at the end of its input what was sent to it.

import { servePush } from "./push-server.ts";

using server = servePush({ partBytes: Number(process.argv[2]) });
console.log(server.endpoint);
for await (const _ of process.stdin);
console.log(JSON.stringify(server.sent).replaceAll(/http:\/\/127\.0\.0\.1:\d+/g, "http://host"));

// The server of the tests for tests/golden/hub/make.py: prints its address, and at the end of its input what was asked of it.

import { HUB_REPOS, serveHub } from "./hub-server.ts";

using server = serveHub(HUB_REPOS);
console.log(server.endpoint);
for await (const _ of process.stdin);
console.log(JSON.stringify(server.asked.map(({ host, method, path, token }) => [host, method, path, token])));

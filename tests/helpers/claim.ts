// One of several processes that try to take the same folders, each at the same moment; a program of its own, since a lock is a
// process's. Arguments: when the first is tried, in ms since 1970, how many ms from one to the next, how many processes there
// are, a folder where each says that it is through, and the folders. Prints for each "taken", or why it was refused, and holds
// what it has taken until all are through: one that comes late on a busy machine must not find what others have given back.

import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { RequestError } from "../../src/base/errors.ts";
import { type Claim, claimOutput } from "../../src/files/output.ts";

const [start = 0, every = 0, parties = 1] = process.argv.slice(2, 5).map(Number);
const [through = "", ...folders] = process.argv.slice(5);
const held: Claim[] = [];
const came = folders.map((folder, i) => {
  while (Date.now() < start + i * every); // sleeping would wake us one after the other
  try {
    held.push(claimOutput(folder));
    return "taken";
  } catch (error) {
    return error instanceof RequestError ? error.code : `${error}`;
  }
});
writeFileSync(join(through, `${process.pid}`), "");
while (readdirSync(through).length < parties) await Bun.sleep(10);
for (const claim of held) claim[Symbol.dispose]();
console.log(JSON.stringify(came));

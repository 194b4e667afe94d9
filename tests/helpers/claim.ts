// One of several processes that try to take the same folders, each at the same moment; a program of its own, since a lock is a
// process's. Arguments: when the first is tried, in ms since 1970, how many ms from one to the next, and the folders. Prints for each
// "taken", or why it was refused, and holds what it has taken until all are through.

import { RequestError } from "../../src/base/errors.ts";
import { type Claim, claimOutput } from "../../src/files/output.ts";

const [start = 0, every = 0] = process.argv.slice(2, 4).map(Number);
const folders = process.argv.slice(4);
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
await Bun.sleep(start + (folders.length + 1) * every - Date.now());
for (const claim of held) claim[Symbol.dispose]();
console.log(JSON.stringify(came));

// Preloaded by `bun test` (bunfig.toml): the limit of a test whose file is run by itself. Bun's own of 5 s is broken by what
// starts the program a few times next to busy neighbours. It holds for the first file of a process alone: to run several in
// one, give --timeout as scripts/test does.

import { setDefaultTimeout } from "bun:test";

setDefaultTimeout(180_000);

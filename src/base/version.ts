// The program's version: package.json's, which the bundler puts in.

import { version } from "../../package.json";

export const VERSION: string = version;

// Answers requests of other processes (`mlora ps`, `pause`, `add` and others): a client of the session, like `mlora run`.

import { log } from "../../base/log.ts";
import { Answers, type ControlRequest, type RunStatus, serveControl, type Underway } from "../../bus/control.ts";
import { newRunKey, type SealedConnection } from "../../bus/seal.ts";
import type { Announcement } from "../../cluster/registry.ts";
import { parseRecipe } from "../../recipe/load.ts";
import type { AddOptions } from "../run/adapters.ts";
import type { Session } from "../session.ts";
import { Additions } from "./additions.ts";
import { withoutRows } from "./granted.ts";

export class RunControl {
  readonly #answers = new Answers();
  readonly #additions = new Additions();

  /** `known` makes the run known on this machine. */
  constructor(
    private readonly session: Pick<Session, "status" | "stop" | "pause" | "resume" | "add" | "fork">,
    private readonly known: Announcement,
  ) {}

  /** Answers on this server until it is disposed, to processes with a key that is new each time and this user's alone. */
  async serve({ connection, run }: { readonly connection: SealedConnection; readonly run: string }): Promise<Disposable> {
    const own = connection.derived(newRunKey());
    const stack = new DisposableStack();
    const refuse = (text: string) => log(0, () => `warning: ${text}`);
    stack.use(serveControl(own, run, async (request) => await this.#answer(request), refuse, this.#answers));
    await own.flush().catch(() => undefined); // the server drops requests until it knows the subscription
    stack.defer(() => this.known.reachable(null));
    this.known.reachable({ address: own.address, key: own.key });
    return stack;
  }

  #answer(request: ControlRequest): RunStatus | string | Promise<string | Underway> {
    const { session } = this;
    switch (request.type) {
      case "status":
        return session.status();
      case "stop":
      case "pause":
      case "resume":
        return session[request.type](request.adapter);
      case "fork":
        return session.fork(request);
      case "outcome":
        return this.#additions.ask(request.ticket);
      case "add":
        return this.#additions.begin((signal, progress) => this.#add(request, { signal, progress }));
    }
  }

  async #add({ text, path }: Extract<ControlRequest, { type: "add" }>, reading: Pick<AddOptions, "signal" | "progress">) {
    const recipe = parseRecipe(text, path);
    return await this.session.add(recipe, { ...reading, isForeign: true }).catch((error) => {
      throw withoutRows(error, path); // the answer travels
    });
  }
}

// Machines that ssh reaches, with nothing between them but a network that can be cut (hosts/hosts.sh): no right of root's is
// needed, only that of namespaces. All processes are in one PID namespace, which ends when this process does, however it ends.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { until } from "./bus.ts";
import { childrenOf, type Ended } from "./program.ts";

const UNSHARE = [
  "unshare",
  "--user",
  "--map-root-user",
  "--net",
  "--mount",
  "--pid",
  "--uts",
  "--fork",
  "--kill-child",
  "--mount-proc",
];
const ENTER = ["--preserve-credentials", "--user", "--net", "--mount", "--pid", "--uts"];
const START_MS = 90_000;
/** Number, command line and environment of each process, a NUL after each process. */
const LIST = String.raw`exec 2>/dev/null
for process in /proc/[0-9]*; do
  echo "$(basename "$process")"
  tr '\0\n' '  ' <"$process/cmdline"
  echo
  tr '\0' '\n' <"$process/environ"
  printf '\0'
done`;

/** Its path; null where there is not one. In many PATHs there is no sbin. */
export const sshdPath = (): string | null => Bun.which("sshd", { PATH: `${process.env["PATH"]}:/usr/sbin:/usr/local/sbin` });

/** Whether this user may make all that the hosts are made of. */
export function canMakeHosts(): boolean {
  if (["unshare", "nsenter", "ip"].some((program) => Bun.which(program) === null)) return false;
  const steps = [
    "ip link add v0 type veth peer name v1",
    "ip link add v2 type bridge",
    "mount -t tmpfs t /mnt",
    "unshare -U true",
  ];
  return Bun.spawnSync([...UNSHARE, "sh", "-c", steps.join(" && ")], { stderr: "ignore" }).exitCode === 0;
}

export type Started = {
  /** Of the command itself, not of what entered the namespaces for it. */
  readonly pid: number;
  /** What it has said on stderr so far. */
  readonly said: () => string;
  readonly ended: Promise<Ended>;
};

export class Hosts implements AsyncDisposable {
  readonly #world: Bun.Subprocess<"pipe", "pipe", "pipe">;
  /** The home folder of each host that has no options, and of "here". */
  readonly homeOf = (name: string) => (name === "here" ? join(this.folder, "here") : join(this.folder, "homes", name));
  #first = 0;

  /** `hosts`: options of a tmpfs for the home of each; empty where it is a plain folder. */
  static async start(folder: string, hosts: Readonly<Record<string, string>>): Promise<Hosts> {
    mkdirSync(folder);
    const started = new Hosts(folder, hosts);
    await started.#ready();
    return started;
  }

  private constructor(
    readonly folder: string,
    hosts: Readonly<Record<string, string>>,
  ) {
    const names = Object.entries(hosts).map(([name, options]) => (options === "" ? name : `${name}=${options}`));
    const script = join(import.meta.dir, "hosts", "hosts.sh");
    this.#world = Bun.spawn([...UNSHARE, "bash", script, folder, sshdPath()!, ...names], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
  }

  async #ready(): Promise<void> {
    const timer = setTimeout(() => this.#world.kill("SIGKILL"), START_MS);
    const reader = this.#world.stdout.getReader();
    const { done } = await reader.read();
    clearTimeout(timer);
    if (done) throw new Error(`the hosts did not start: ${await this.#world.stderr.text()}`);
    this.#first = childrenOf(this.#world.pid)[0]!;
  }

  /** Starts a command on the machine "here", in a session of its own: to -pid goes what a terminal sends. */
  async start(command: readonly string[], environment: Readonly<Record<string, string>> = {}): Promise<Started> {
    const env = { PATH: process.env["PATH"]!, HOME: this.homeOf("here"), ...environment };
    const child = Bun.spawn(["nsenter", "--target", `${this.#first}`, ...ENTER, "--", "setsid", ...command], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
      env,
    });
    let err = "";
    const reading = (async () => {
      const decoder = new TextDecoder();
      for await (const bytes of child.stderr) err += decoder.decode(bytes, { stream: true });
    })();
    const ended = Promise.all([child.stdout.text(), child.exited, reading]).then(([out, code]) => ({ out, err, code }));
    let pid = 0;
    await until("nsenter enters", START_MS, () => {
      pid = child.exitCode === null ? (childrenOf(child.pid)[0] ?? 0) : -1;
      return pid !== 0;
    });
    return { pid, said: () => err, ended };
  }

  async run(...command: readonly string[]): Promise<Ended> {
    return (await this.start(command)).ended;
  }

  /** Pulls a host's cable, or puts it back. */
  async cable(name: string, state: "up" | "down"): Promise<void> {
    const { code, err } = await this.run("ip", "link", "set", name, state);
    if (code !== 0) throw new Error(err);
  }

  /** All processes of all machines; `pid` is for the machine "here". */
  async processes(): Promise<{ readonly pid: string; readonly command: string; readonly environment: string }[]> {
    const { out } = await this.run("bash", "-c", LIST);
    return out.split("\0").map((text) => {
      const [pid = "", command = "", ...environment] = text.split("\n");
      return { pid, command, environment: environment.join("\n") };
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#world.stdin.end();
    await this.#world.exited;
  }
}

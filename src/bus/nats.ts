// The one door to NATS's client: a connection that carries bytes, and says what becomes of it. It knows nothing of what the
// bytes mean. Core NATS delivers at most once, and drops what was on its way when a connection is lost: channel.ts makes good
// for it.

import {
  AuthorizationError,
  type ConnectionOptions,
  connect as dial,
  type NatsConnection,
  nkeyAuthenticator,
  PermissionViolationError,
  TimeoutError,
  type TlsOptions,
  tokenAuthenticator,
  usernamePasswordAuthenticator,
} from "@nats-io/transport-node";
import { type MloraError, RequestError, RunError, textOf } from "../base/errors.ts";
import { type Address, describeAddress } from "./address.ts";

export interface Connection extends AsyncDisposable {
  /** Secret: for children, and for threads that need a connection of their own. */
  readonly address: Address;
  /** "host:port", for messages. */
  readonly server: string;
  /** The server's: "2.15.1". */
  readonly version: string;
  /** Whether TLS protects it. */
  readonly encrypted: boolean;
  /** Most bytes of a message. */
  readonly maxPayload: number;
  /** `bytes` are not copied: they may not be changed until the next turn of the event loop, or a `flush`. */
  publish(subject: string, bytes: Uint8Array): void;
  /** Calls `handle` with each message; it must not throw, and must not keep `bytes`. */
  subscribe(subject: string, handle: (bytes: Uint8Array, subject: string) => void): Disposable;
  /** Resolves when the server has got all that was published and subscribed. Throws a RunError while there is no connection. */
  flush(): Promise<void>;
  /**
   * Calls back when the connection was lost and is being sought, at once where it is, and when it is there again, with all
   * subscriptions.
   */
  watch(listener: (state: "lost" | "back") => void): Disposable;
  /** Aborted, with a RunError, when the connection is over and not by our wish. */
  readonly over: AbortSignal;
}

const CONNECT_MS = 5_000;
/** A server that answers no pings is given up after two or three of these. */
const PING_MS = 1_000;
const RECONNECT_MS = 100;

/**
 * Connects; `name` is what the server's own lists call us. Throws a RequestError "nats.*" that says what to do, and no secret.
 */
export async function connect(address: Address, name: string): Promise<Connection> {
  const options: ConnectionOptions = {
    servers: address.servers.map((server) => server.replace(/^\w+:\/\//, "")),
    name,
    ...(address.login ? { authenticator: authenticator(address.login) } : {}),
    ...(address.tls ? { tls: address.tls as TlsOptions } : {}),
    timeout: CONNECT_MS,
    maxReconnectAttempts: -1,
    reconnectTimeWait: RECONNECT_MS,
    reconnectJitter: RECONNECT_MS / 2,
    reconnectJitterTLS: RECONNECT_MS / 2,
    pingInterval: PING_MS,
    maxPingOut: 2,
  };
  try {
    return wrap(await dial(options), address);
  } catch (error) {
    throw connectError(error, address);
  }
}

function authenticator(login: NonNullable<Address["login"]>) {
  if ("token" in login) return tokenAuthenticator(login.token);
  if ("seed" in login) return nkeyAuthenticator(new TextEncoder().encode(login.seed));
  return usernamePasswordAuthenticator(login.user, login.password);
}

function wrap(client: NatsConnection, address: Address): Connection {
  const server = client.getServer();
  const over = new AbortController();
  const listeners = new Set<(state: "lost" | "back") => void>();
  let wanted = false; // its end is our wish
  let isLost = false;
  const turn = (state: "lost" | "back") => {
    isLost = state === "lost";
    for (const listener of listeners) listener(state);
  };
  const fail = (code: string, message: string, hint: string) => {
    if (!wanted) over.abort(new RunError(code, message, hint));
  };
  void client.closed().then((error) => {
    const reason = error instanceof Error ? `: ${error.message}` : "";
    fail("nats.closed", `the NATS server at ${server} closed the connection${reason}`, "look into the server's log");
  });
  void (async () => {
    for await (const status of client.status())
      if (status.type === "disconnect") turn("lost");
      else if (status.type === "reconnect") turn("back");
      else if (status.type === "error" && status.error instanceof PermissionViolationError) {
        const { operation, subject } = status.error;
        const what = `the NATS server at ${server} does not allow a ${operation} on '${subject}'`;
        fail(
          "nats.permission",
          what,
          `the user must be allowed to publish and subscribe on '${subject.split(".").slice(0, 2).join(".")}.>'`,
        );
      }
  })();
  return {
    address,
    server,
    version: client.info?.version ?? "unknown",
    encrypted: Boolean(address.tls) || client.info?.tls_required === true,
    maxPayload: client.info?.max_payload ?? 2 ** 20,
    publish: (subject, bytes) => {
      if (!client.isClosed()) client.publish(subject, bytes);
    },
    subscribe(subject, handle) {
      const callback = (error: Error | null, message: { data: Uint8Array; subject: string }) => {
        if (!error) handle(message.data, message.subject); // an error closes the subscription, and the status tells of it
      };
      const subscription = client.subscribe(subject, { callback });
      return { [Symbol.dispose]: () => subscription.unsubscribe() };
    },
    async flush() {
      try {
        await client.flush();
      } catch (error) {
        throw new RunError("nats.lost", `there is no connection to the NATS server at ${server}`, undefined, { cause: error });
      }
    },
    watch(listener) {
      listeners.add(listener);
      if (isLost) listener("lost"); // it may be lost before anybody watches
      return { [Symbol.dispose]: () => void listeners.delete(listener) };
    },
    over: over.signal,
    async [Symbol.asyncDispose]() {
      wanted = true;
      await client.close();
    },
  };
}

/** What went wrong with a first connection, and the way out. */
function connectError(error: unknown, address: Address): MloraError {
  const where = `the NATS server at ${describeAddress(address)}`;
  const because = { cause: error };
  const text = textOf(error);
  const { code = "" } = (error ?? {}) as { code?: string };
  if (error instanceof AuthorizationError) {
    const hint =
      "give the right credentials in the URL, or in MLORA_NATS_TOKEN, MLORA_NATS_USER and MLORA_NATS_PASSWORD, or MLORA_NATS_NKEY";
    return new RequestError("nats.authorization", `${where} refuses ${credentialsOf(address)}`, hint, because);
  }
  if (/refused|ECONNREFUSED/i.test(text + code))
    return new RequestError(
      "nats.refused",
      `nothing listens at ${describeAddress(address)}: connection refused`,
      "start nats-server there, or correct --nats",
      because,
    );
  if (/ENOTFOUND|EAI_AGAIN|getaddrinfo/i.test(text + code))
    return new RequestError("nats.host", `no machine is known as ${describeAddress(address)}`, "correct --nats", because);
  if (error instanceof TimeoutError || /timeout|ETIMEDOUT/i.test(text + code))
    return new RequestError(
      "nats.timeout",
      `${where} did not answer within ${CONNECT_MS / 1000} s`,
      "see whether a firewall is in between, and whether it is a NATS server",
      because,
    );
  if (/tls|ssl|cert|CERT|EBADF|ECONNRESET|self.signed/i.test(text + code))
    return new RequestError(
      "nats.tls",
      `no secure connection to ${describeAddress(address)}: ${text}`,
      "name the certificates that vouch for it in MLORA_NATS_CA; MLORA_NATS_CERT and MLORA_NATS_KEY if it asks for ours; write nats:// if it has no TLS",
      because,
    );
  return new RequestError("nats.connect", `cannot connect to ${where}: ${text}`, "see that it is a NATS server", because);
}

function credentialsOf({ login }: Address): string {
  if (!login) return "us without credentials";
  if ("token" in login) return "the token";
  return "seed" in login ? "the nkey" : "the user and password";
}

// Writes the payloads of all TCP segments from and to a port, as this network namespace sees them: sniff.ts PORT FILE.

import { dlopen } from "bun:ffi";
import { openSync, writeSync } from "node:fs";

const AF_PACKET = 17;
const SOCK_DGRAM = 2; // begins at the IP header
const ETH_P_ALL = 0x0300; // 3, in network order
const TCP = 6;

const { symbols: libc } = dlopen("libc.so.6", {
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i64" },
});

const [, , port, path] = process.argv;
const socket = libc.socket(AF_PACKET, SOCK_DGRAM, ETH_P_ALL);
if (socket < 0) throw new Error("this process may not open a packet socket");
const file = openSync(path!, "wx"); // that it is there says that all is heard from now on
const packet = Buffer.alloc(2 ** 17);
for (;;) {
  const length = Number(libc.recv(socket, packet, packet.length, 0));
  if (length < 40 || packet[0]! >> 4 !== 4 || packet[9] !== TCP) continue;
  const segment = (packet[0]! & 15) * 4;
  if (![packet.readUInt16BE(segment), packet.readUInt16BE(segment + 2)].includes(Number(port))) continue;
  writeSync(
    file,
    packet.subarray(segment + (packet[segment + 12]! >> 4) * 4, Math.min(length, packet.readUInt16BE(2) || length)),
  );
}

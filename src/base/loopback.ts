// Hosts by which a machine reaches itself alone: what goes to them crosses no network.

/** Whether a host, alone or as a URL has it, is this machine to itself. */
export const isLoopback = (host: string): boolean => /^(127(\.\d{1,3}){3}|localhost|\[?::1\]?)$/.test(host);

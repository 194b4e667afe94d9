// Listeners of abort signals.

/** Calls `listener` when the signal is aborted, at once where it has been; no more once it is disposed. */
export function onAbort(signal: AbortSignal, listener: () => void): Disposable {
  if (signal.aborted) listener();
  signal.addEventListener("abort", listener);
  return { [Symbol.dispose]: () => signal.removeEventListener("abort", listener) };
}

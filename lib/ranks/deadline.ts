// Waiting that ends.
import { setTimeout as delay } from "node:timers/promises";
import { TokenringError } from "../errors.ts";

/** Awaits `what` for so many milliseconds; then ERR_TOKENRING_TIMEOUT with what `late` says. */
export async function inTime<T>(
  what: Promise<T>,
  milliseconds: number,
  late: () => string,
  signal?: AbortSignal,
): Promise<T> {
  const over = new AbortController();
  const deadline = delay(milliseconds, undefined, { signal: over.signal }).then(() => {
    throw new TokenringError("ERR_TOKENRING_TIMEOUT", late());
  });
  deadline.catch(() => {});
  const stop = new Promise<never>((_, reject) => {
    if (signal?.aborted) reject(signal.reason);
    signal?.addEventListener("abort", () => reject(signal.reason), { signal: over.signal, once: true });
  });
  stop.catch(() => {});
  try {
    return await Promise.race([what, deadline, stop]);
  } finally {
    over.abort();
  }
}

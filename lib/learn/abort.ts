import { TokenringError, whoAborted } from "../errors.ts";

/** Throws ERR_TOKENRING_ABORTED when `signal` has fired; says what was about to be done (`where`), and who stopped it. */
export function checkAborted(signal: AbortSignal | undefined, where: string): void {
  if (!signal?.aborted) return;
  const cause: unknown = signal.reason;
  throw new TokenringError("ERR_TOKENRING_ABORTED", `${where}: ${whoAborted(cause)}`, { cause });
}

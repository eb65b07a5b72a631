import { TokenringError } from "../errors.ts";

/** Throws ERR_TOKENRING_ABORTED when `signal` has fired; `where` says what was about to be done. */
export function checkAborted(signal: AbortSignal | undefined, where: string): void {
  if (signal?.aborted) {
    throw new TokenringError("ERR_TOKENRING_ABORTED", `${where}: stopped by the caller`, {
      cause: signal.reason,
    });
  }
}

// Two kinds of trouble: a file that is not there (the agent's business) and a broken sandbox (ours).
import { TokenringError } from "../errors.ts";

/**
 * A file could not be read or written inside a working sandbox. `message` is one short line that an agent may be
 * shown, e.g. "a.py: No such file or directory".
 */
export class SandboxFileError extends Error {
  override readonly name = "SandboxFileError";
  readonly path: string;

  constructor(path: string, reason: string) {
    super(`${path}: ${reason}`);
    this.path = path;
  }
}

/** The sandbox itself is broken: no verdict, the caller retries elsewhere. */
export function sandboxBroken(
  message: string,
  options: { cause?: unknown; details?: Record<string, unknown> } = {},
): TokenringError {
  return new TokenringError("ERR_TOKENRING_SANDBOX", message, options);
}

export function sandboxClosed(): TokenringError {
  return new TokenringError("ERR_TOKENRING_DISPOSED", "The sandbox is closed; open a new one.");
}

export function sandboxAborted(signal: AbortSignal): TokenringError {
  return new TokenringError("ERR_TOKENRING_ABORTED", "The sandbox's work was aborted by its caller.", {
    cause: signal.reason,
  });
}

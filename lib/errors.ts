// The one error family. Messages are one line: what was wrong, where, and what to do.

/** The codes of TokenringError; docs/errors.md has the cause and cure of each. */
export type ErrorCode =
  | "ERR_TOKENRING_INVALID_ARGUMENT"
  | "ERR_TOKENRING_CONFIG"
  | "ERR_TOKENRING_NATIVE_MISSING"
  | "ERR_TOKENRING_CHECKPOINT"
  | "ERR_TOKENRING_TOKENIZER"
  | "ERR_TOKENRING_TASK"
  | "ERR_TOKENRING_SANDBOX"
  | "ERR_TOKENRING_ENGINE"
  | "ERR_TOKENRING_RUN_DIRECTORY"
  | "ERR_TOKENRING_NON_FINITE"
  | "ERR_TOKENRING_LOGPROB_MISMATCH"
  | "ERR_TOKENRING_PREFIX_CHANGED"
  | "ERR_TOKENRING_COMMUNICATOR"
  | "ERR_TOKENRING_OUT_OF_MEMORY"
  | "ERR_TOKENRING_DISPOSED"
  | "ERR_TOKENRING_ABORTED"
  | "ERR_TOKENRING_TIMEOUT"
  | "ERR_TOKENRING_INTERNAL";

/**
 * Every error that tokenring throws on purpose.
 * `details` holds what a program may want to look at (paths, keys, numbers); `cause` what led to it.
 */
export class TokenringError extends Error {
  override readonly name = "TokenringError";
  /** What kind of fault: stable, for programs. */
  readonly code: ErrorCode;
  /** Paths, keys and numbers of the message, for programs; {} where there are none. */
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    options: { cause?: unknown; details?: Record<string, unknown> } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }
}

/** Whether `error` is a TokenringError, optionally of the given code. Works across copies of the package. */
export function isTokenringError(error: unknown, code?: ErrorCode): error is TokenringError {
  return (
    error instanceof Error &&
    error.name === "TokenringError" &&
    (code === undefined || (error as TokenringError).code === code)
  );
}

/** In words, who fired an AbortSignal with `reason`: an ERR_TOKENRING_ABORTED says so itself. */
export function whoAborted(reason: unknown): string {
  return isTokenringError(reason, "ERR_TOKENRING_ABORTED") ? reason.message : "stopped by the caller";
}

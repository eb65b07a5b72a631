// Waits that end: by their result, by the caller's abort, or by a deadline.
import { isTokenringError, TokenringError } from "../errors.ts";

/** How long a callee has, after the signal, to end by itself and leave what it works on in order. */
const GRACE_MS = 1000;

/** An AbortSignal that fires at the deadline or with the parent; `release` takes timer and listener away. */
export interface Deadline {
  readonly signal: AbortSignal;
  /** Whether it was the deadline that fired, not the parent. */
  readonly expired: boolean;
  /** `promise`; once the signal has fired, a rejection with its reason, at the latest after a grace of one second. */
  race<T>(promise: Promise<T>): Promise<T>;
  release(): void;
}

/** Starts the clock: `ms` milliseconds for `what`. */
export function startDeadline(ms: number, what: string, parent?: AbortSignal): Deadline {
  const controller = new AbortController();
  let expired = false;
  const timer = setTimeout(() => {
    if (controller.signal.aborted) return;
    expired = true;
    controller.abort(new TokenringError("ERR_TOKENRING_TIMEOUT", `${what} took longer than ${ms} ms`));
  }, ms);
  const follow = (): void => {
    const cause = parent?.reason;
    controller.abort(new TokenringError("ERR_TOKENRING_ABORTED", `${what} was aborted`, { cause }));
  };
  if (parent?.aborted) follow();
  else parent?.addEventListener("abort", follow, { once: true });
  return {
    signal: controller.signal,
    get expired() {
      return expired;
    },
    race(promise) {
      const { signal } = controller;
      return new Promise((resolve, reject) => {
        let grace: NodeJS.Timeout | undefined;
        const onAbort = (): void => {
          grace = setTimeout(() => reject(signal.reason), GRACE_MS);
        };
        if (signal.aborted) onAbort();
        else signal.addEventListener("abort", onAbort, { once: true });
        const settle = (): void => {
          clearTimeout(grace);
          signal.removeEventListener("abort", onAbort);
        };
        promise.then(
          (value) => {
            settle();
            resolve(value);
          },
          (error: unknown) => {
            settle();
            reject(signal.aborted ? signal.reason : error);
          },
        );
      });
    },
    release() {
      clearTimeout(timer);
      parent?.removeEventListener("abort", follow);
    },
  };
}

/** Runs `action` with a signal that fires at the deadline; rejects then with ERR_TOKENRING_TIMEOUT. */
export async function withDeadline<T>(
  ms: number,
  what: string,
  parent: AbortSignal | undefined,
  action: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const deadline = startDeadline(ms, what, parent);
  try {
    deadline.signal.throwIfAborted();
    return await deadline.race(action(deadline.signal));
  } finally {
    deadline.release();
  }
}

/** As `withDeadline`, for what a sandbox does: one that does not answer in time is broken (ERR_TOKENRING_SANDBOX). */
export async function withSandboxDeadline<T>(...args: Parameters<typeof withDeadline<T>>): Promise<T> {
  try {
    return await withDeadline(...args);
  } catch (error) {
    if (!isTokenringError(error, "ERR_TOKENRING_TIMEOUT")) throw error;
    throw new TokenringError("ERR_TOKENRING_SANDBOX", error.message, { cause: error });
  }
}

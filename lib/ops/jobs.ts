// What every asynchronous native call goes through on its way to the user.
import { isTokenringError } from "../errors.ts";
import type { NativeJob } from "./binding.ts";

/** What every asynchronous call takes. */
export interface CallOptions {
  /** Stops the call, unless it is done first: it then rejects with `signal.reason`. */
  signal?: AbortSignal;
}

/** One listener a signal, however many calls it stops: hundreds of turns may be sampled under one signal. */
const stopped = new WeakMap<AbortSignal, Set<NativeJob<unknown>>>();

function onAbort(event: Event): void {
  for (const job of stopped.get(event.target as AbortSignal) ?? []) job.abort();
}

function watch(signal: AbortSignal, job: NativeJob<unknown>): void {
  let jobs = stopped.get(signal);
  if (jobs === undefined) {
    jobs = new Set();
    stopped.set(signal, jobs);
  }
  if (jobs.size === 0) signal.addEventListener("abort", onAbort);
  jobs.add(job);
}

function unwatch(signal: AbortSignal, job: NativeJob<unknown>): void {
  const jobs = stopped.get(signal);
  jobs?.delete(job);
  if (jobs?.size === 0) signal.removeEventListener("abort", onAbort);
}

/**
 * Starts a job and gives its result. `signal` stops it: the promise then rejects with `signal.reason`, and a signal
 * that has fired already keeps it from starting. A job that was done before the signal reached it keeps its result.
 * Errors of the native code get the stack of this call's caller, because they come from a thread that has none.
 */
export async function withSignal<T>(start: () => NativeJob<T>, signal?: AbortSignal): Promise<T> {
  const here: { stack?: string } = {};
  Error.captureStackTrace(here, withSignal);
  if (signal?.aborted) throw signal.reason;
  const job = start();
  if (signal) watch(signal, job);
  try {
    return await job.promise;
  } catch (error) {
    if (signal?.aborted && isTokenringError(error, "ERR_TOKENRING_ABORTED")) throw signal.reason;
    if (error instanceof Error) {
      const frames = (here.stack ?? "").split("\n").slice(1).join("\n");
      error.stack = `${error.name}: ${error.message}\n${frames}`;
    }
    throw error;
  } finally {
    if (signal) unwatch(signal, job);
  }
}

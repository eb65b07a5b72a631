// How many threads the ops of this JavaScript thread compute with.
import { loadBinding } from "./native.ts";

/**
 * Threads of the CPU backend for the ops that this JavaScript thread calls from now on; 0 = all cores that the process
 * may use (default). Where several ranks share a machine, give each its share. Results do not depend on it.
 */
export function setThreads(threads: number): void {
  loadBinding().setThreads(threads);
}

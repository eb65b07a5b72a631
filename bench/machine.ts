// The machine that a run is of.
import { availableParallelism, cpus } from "node:os";
import { loadBinding } from "tokenring/ops";
import type { Results } from "./result.ts";

/** All cores. */
export const MOST_THREADS: number = availableParallelism();

/**
 * The machine as results name it: the CPU's model with `threads`, those of every side of a comparison; the GPUs that CUDA
 * shows, null for none.
 */
export function describeMachine(threads: number): Results["machine"] {
  const { devices } = loadBinding().cuda();
  const gpu = devices.map(({ name }) => name).join(", ");
  return { cpu: `${cpus()[0]?.model.trim() ?? "unknown"}, ${threads} threads`, gpu: gpu || null };
}

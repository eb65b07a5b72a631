// The machine that a run is of.
import { availableParallelism, cpus } from "node:os";
import { loadBinding } from "tokenring/ops";
import type { Results } from "./result.ts";

/** Threads of every side of a comparison. */
export const THREADS: number = availableParallelism();

export function describeMachine(): Results["machine"] {
  const { devices } = loadBinding().cuda();
  const gpu = devices.map(({ name }) => name).join(", ");
  return { cpu: `${cpus()[0]?.model.trim() ?? "unknown"}, ${THREADS} threads`, gpu: gpu || null };
}

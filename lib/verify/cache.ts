// Tests are deterministic, and the rollouts of a group often end in the same patch.
import { createHash } from "node:crypto";
import type { Verification } from "./types.ts";

export interface VerdictCache {
  get(instanceId: string, patch: string): Verification | undefined;
  set(instanceId: string, patch: string, verification: Verification): void;
}

/** Keeps the verdicts of the last `entries` pairs of instance and patch in memory. */
export function verdictCache(options: { entries?: number } = {}): VerdictCache {
  const entries = options.entries ?? 10_000;
  const kept = new Map<string, Verification>();
  const key = (instanceId: string, patch: string): string =>
    `${instanceId}\0${createHash("sha256").update(patch).digest("hex")}`;
  return {
    get(instanceId, patch) {
      const name = key(instanceId, patch);
      const found = kept.get(name);
      if (found) {
        // The most recently used stands last.
        kept.delete(name);
        kept.set(name, found);
      }
      return found;
    },
    set(instanceId, patch, verification) {
      const name = key(instanceId, patch);
      kept.delete(name);
      kept.set(name, verification);
      const oldest = kept.size > entries ? kept.keys().next().value : undefined;
      if (oldest !== undefined) kept.delete(oldest);
    },
  };
}

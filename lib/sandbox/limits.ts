// What one command may use, and how the resident shell imposes it on itself and its children.
import { TokenringError } from "../errors.ts";
import type { SandboxLimits } from "./types.ts";

const MiB = 1024 * 1024;

export const DEFAULT_LIMITS: Readonly<SandboxLimits> = {
  commandMs: 30_000,
  cpuSeconds: 10,
  outputBytes: 64 * 1024,
  memoryBytes: 1024 * MiB,
  processes: 64,
  fileBytes: 16 * MiB,
};

/** A command that goes on writing this far beyond `outputBytes` is killed: reading on costs the host, not the agent. */
export const FLOOD_BYTES: number = 16 * MiB;

/** A sandbox may hold this many times `fileBytes` in the files of its tree and of /tmp together, beyond its start. */
export const TREE_FILES = 16;

/** Files and folders that a sandbox may add to its tree and to /tmp. */
export const TREE_ENTRIES = 20_000;

/** Fills in the defaults; every limit is a positive whole number. */
export function resolveLimits(...parts: readonly (Partial<SandboxLimits> | undefined)[]): SandboxLimits {
  const limits: SandboxLimits = { ...DEFAULT_LIMITS };
  for (const part of parts) {
    for (const [key, value] of Object.entries(part ?? {})) {
      if (!(key in limits)) {
        throw new TokenringError("ERR_TOKENRING_INVALID_ARGUMENT", `Unknown sandbox limit "${key}".`);
      }
      if (value === undefined) continue;
      if (!Number.isSafeInteger(value) || value <= 0) {
        throw new TokenringError(
          "ERR_TOKENRING_INVALID_ARGUMENT",
          `Sandbox limit "${key}" must be a positive whole number, got ${String(value)}.`,
        );
      }
      limits[key as keyof SandboxLimits] = value;
    }
  }
  return limits;
}

/**
 * The `ulimit` line. CPU time warns (SIGXCPU, exit code 152) before it kills, so that the limit can be told from other
 * deaths. `processes`: what the kernel's count for the user may come to; null leaves it.
 */
export function limitCommand(limits: SandboxLimits, processes: number | null): string {
  const kib = (bytes: number): number => Math.max(1, Math.ceil(bytes / 1024));
  return (
    `ulimit -S -t ${limits.cpuSeconds} && ulimit -H -t ${limits.cpuSeconds + 2} && ` +
    `ulimit -c 0 -n 1024 -v ${kib(limits.memoryBytes)} -f ${kib(limits.fileBytes)}${processes === null ? "" : ` -u ${processes}`}`
  );
}

// Little repositories, and the kinds of local sandbox that this machine has.
import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { findProgram } from "../../lib/sandbox/host.ts";
import { landlockVersion } from "../../lib/sandbox/launcher.ts";
import { type LocalBackendOptions, type LocalKind, localBackend } from "../../lib/sandbox/local.ts";
import type { SandboxBackend } from "../../lib/sandbox/types.ts";

/** The kinds that isolate by namespaces: where bubblewrap is installed they have to work. */
export const APART: LocalKind[] = findProgram("bwrap") ? ["namespaces", "bubblewrap"] : [];

/** The kinds that isolate, best first; Landlock has to work where it is switched on. */
export const ISOLATED: LocalKind[] = [...APART, ...(landlockVersion() > 0 ? (["landlock"] as const) : [])];

export const KINDS: LocalKind[] = [...ISOLATED, "unsafe-host"];

export const git = (directory: string, ...args: string[]): string =>
  execFileSync("git", ["-c", "user.name=t", "-c", "user.email=t@t", "-C", directory, ...args], {
    encoding: "utf8",
    timeout: 20_000,
    env: { PATH: process.env.PATH, GIT_CONFIG_NOSYSTEM: "1", GIT_CONFIG_GLOBAL: "/dev/null" },
  });

const made: string[] = [];

export function temporaryDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "tokenring-test-"));
  // Sandboxes may run as another user, who has to pass through.
  chmodSync(directory, 0o755);
  made.push(directory);
  return directory;
}

/** A git repository with one commit of `files`. */
export function makeRepository(files: Record<string, string | Buffer>): string {
  const directory = temporaryDirectory();
  git(directory, "init", "-q", "-b", "main", "--template=");
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), content);
  }
  git(directory, "add", "-A");
  git(directory, "commit", "-q", "-m", "base");
  return directory;
}

export function removeDirectories(): void {
  for (const directory of made.splice(0)) rmSync(directory, { recursive: true, force: true });
}

/** A backend of `kind`; a kind that is there but does not work fails the test with the reason and the cure. */
export function openBackend(kind: LocalKind, options: LocalBackendOptions = {}): Promise<SandboxBackend> {
  return localBackend({ kind, onWarning: () => undefined, ...options });
}

/** Host ids of the processes whose command line contains `text`. */
export function processesWith(text: string): number[] {
  return readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      return readFileSync(`/proc/${name}/cmdline`, "utf8").includes(text) ? [Number(name)] : [];
    } catch {
      return [];
    }
  });
}

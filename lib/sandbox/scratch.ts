// The host directory under which a backend keeps its sandboxes; it never outlives the process by more than one start.
import {
  accessSync,
  chmodSync,
  constants,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statfsSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { TokenringError } from "../errors.ts";
import { sandboxBroken } from "./errors.ts";
import { removeTree } from "./tree.ts";

const SHARED_MEMORY = "/dev/shm";
const LEAST_MEMORY_BYTES = 1024 ** 3;

/** Our directories are named after host and process, so that another start can tell whose owner is dead. */
function namePrefix(): string {
  return `tokenring-${hostname().replace(/[^\w.]/g, "_")}-`;
}

/**
 * Memory where there is enough of it that may hold programs: making and removing a small repository costs a fifth of
 * what it costs on a disk, and folders list in the same order everywhere.
 */
export function defaultScratchParent(): string {
  try {
    const { bavail, bsize } = statfsSync(SHARED_MEMORY);
    const mount = readFileSync("/proc/self/mounts", "utf8")
      .split("\n")
      .map((line) => line.split(" "))
      .find((fields) => fields[1] === SHARED_MEMORY);
    const noexec = mount?.[3]?.split(",").includes("noexec") ?? true;
    accessSync(SHARED_MEMORY, constants.W_OK);
    if (!noexec && mount?.[2] === "tmpfs" && bavail * bsize >= LEAST_MEMORY_BYTES) return SHARED_MEMORY;
  } catch {
    // No such memory here.
  }
  return tmpdir();
}

/** A fresh directory; others may pass through it but not list it. Its path is plain enough to stand in shell text. */
export function createScratch(parent: string): string {
  let directory: string;
  try {
    directory = mkdtempSync(join(realpathSync(parent), `${namePrefix()}${process.pid}-`));
  } catch (cause) {
    throw sandboxBroken(`Cannot make a directory for sandboxes in ${parent}: ${String(cause)}`, { cause });
  }
  if (!/^[\w./-]+$/.test(directory)) {
    rmSync(directory, { recursive: true, force: true });
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `The directory for sandboxes, ${directory}, has characters that a shell would read; name another.`,
    );
  }
  chmodSync(directory, 0o711);
  return directory;
}

/** Removes what processes of this host that no longer live left behind. */
export async function removeStaleScratch(parent: string): Promise<void> {
  const prefix = namePrefix();
  let names: string[];
  try {
    names = readdirSync(parent);
  } catch {
    return;
  }
  for (const name of names) {
    const pid = name.startsWith(prefix) ? /^(\d+)-\w+$/.exec(name.slice(prefix.length))?.[1] : undefined;
    if (pid === undefined || isAlive(Number(pid))) continue;
    const path = join(parent, name);
    const stat = lstatSync(path, { throwIfNoEntry: false });
    const own = process.getuid?.() === 0 || stat?.uid === process.getuid?.();
    if (stat?.isDirectory() && own) await removeTree(path);
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ESRCH";
  }
}

// Copies, measures and removes directory trees that an agent may have shaped.
// Node has no openat(2); a path below /proc/self/fd/<directory> is the same thing, so a link that is swapped in between
// two steps leads nowhere.
import { execFile } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  futimesSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  rmdirSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeSync,
} from "node:fs";
import { promisify } from "node:util";
import { sandboxBroken } from "./errors.ts";

export interface Owner {
  uid: number;
  gid: number;
}

export interface TreeSize {
  bytes: number;
  entries: number;
}

/** Every copied file bears this time (seconds since the epoch), so that no listing differs between two runs. */
const FIXED_TIME = 1_577_836_800;
const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const FILE = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
const CHUNK = Buffer.allocUnsafeSlow(256 * 1024);

interface CopyOptions {
  owner?: Owner | undefined;
  limit?: TreeSize | undefined;
  /** A folder to leave out, as the names that lead to it. */
  omit?: readonly string[] | undefined;
}

/**
 * Copies directory `source` to `target`, which must not exist or be empty: files, folders, links (as links); sockets,
 * devices and pipes are left out. Synchronous, because for some dozen small files that is several times cheaper.
 * @throws ERR_TOKENRING_SANDBOX when the tree is larger than `limit`.
 */
export function copyTree(source: string, target: string, options: CopyOptions = {}): TreeSize {
  const size: TreeSize = { bytes: 0, entries: 0 };
  mkdirSync(target, { recursive: true, mode: 0o755 });
  copyDirectory(Buffer.from(source), Buffer.from(target), options, size);
  return size;
}

// Names are bytes, not text.
function below(directory: Buffer | string, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(directory), Buffer.from("/"), name]);
}

function copyDirectory(source: Buffer, target: Buffer, options: CopyOptions, size: TreeSize): void {
  const { owner, limit, omit } = options;
  const directory = openSync(source, DIRECTORY);
  try {
    const anchor = `/proc/self/fd/${directory}`;
    const entries = readdirSync(anchor, { withFileTypes: true, encoding: "buffer" });
    // A fixed order of creation is a fixed order of listing on tmpfs.
    entries.sort((a, b) => Buffer.compare(a.name, b.name));
    for (const entry of entries) {
      const from = below(anchor, entry.name);
      const to = below(target, entry.name);
      if (entry.isDirectory()) {
        const rest = omit?.[0] === entry.name.toString() ? omit.slice(1) : undefined;
        if (rest?.length === 0) continue;
        mkdirSync(to, 0o755);
        copyDirectory(from, to, { owner, limit, omit: rest }, size);
      } else if (entry.isFile()) copyFile(from, to, owner, limit, size);
      else if (entry.isSymbolicLink()) {
        symlinkSync(readlinkSync(from, { encoding: "buffer" }), to);
        if (owner) lchownSync(to, owner.uid, owner.gid);
      }
      size.entries++;
      checkSize(size, limit);
    }
    finishDirectory(target, owner);
  } finally {
    closeSync(directory);
  }
}

/** Gives a directory that is complete its rights, owner and time. */
export function finishDirectory(path: Buffer | string, owner: Owner | undefined): void {
  chmodSync(path, 0o755);
  if (owner) chownSync(path, owner.uid, owner.gid);
  utimesSync(path, FIXED_TIME, FIXED_TIME);
}

function copyFile(
  from: Buffer,
  to: Buffer,
  owner: Owner | undefined,
  limit: TreeSize | undefined,
  size: TreeSize,
): void {
  const input = openSync(from, FILE);
  try {
    const stat = fstatSync(input);
    if (!stat.isFile()) return;
    const output = openSync(to, CREATE, 0o600);
    try {
      for (let count = readSync(input, CHUNK); count > 0; count = readSync(input, CHUNK)) {
        size.bytes += count;
        checkSize(size, limit);
        for (let offset = 0; offset < count; ) offset += writeSync(output, CHUNK, offset, count - offset);
      }
      if (owner) fchownSync(output, owner.uid, owner.gid);
      fchmodSync(output, stat.mode & 0o777);
      futimesSync(output, FIXED_TIME, FIXED_TIME);
    } finally {
      closeSync(output);
    }
  } finally {
    closeSync(input);
  }
}

function checkSize(size: TreeSize, limit: TreeSize | undefined): void {
  if (limit && (size.bytes > limit.bytes || size.entries > limit.entries)) {
    throw sandboxBroken(
      `A sandbox's tree is too large to copy: over ${limit.bytes} bytes or ${limit.entries} files.`,
    );
  }
}

/**
 * Adds up `directory`, following no link, and stops soon after `limit` is passed. Entries that vanish count nothing; what
 * lies too deep to be looked at passes the limit.
 */
export function measureTree(
  directory: string,
  limit: TreeSize,
  size: TreeSize = { bytes: 0, entries: 0 },
): TreeSize {
  let entries: ReturnType<typeof readNames>;
  try {
    entries = readNames(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENAMETOOLONG") size.entries = limit.entries + 1;
    return size;
  }
  for (const entry of entries) {
    if (size.bytes > limit.bytes || size.entries > limit.entries) break;
    size.entries++;
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory()) measureTree(path, limit, size);
    else if (entry.isFile()) {
      try {
        size.bytes += lstatSync(path).blocks * 512;
      } catch {
        // Gone since it was listed.
      }
    }
  }
  return size;
}

/** Paths of everything but folders, relative to `directory`, without `.git`; null where it cannot be read or passes `most`. */
export function listFiles(directory: string, most: number): Set<string> | null {
  const files = new Set<string>();
  const visit = (path: string, prefix: string): boolean => {
    for (const entry of readNames(path)) {
      if (prefix === "" && entry.name === ".git") continue;
      if (entry.isDirectory()) {
        if (!visit(`${path}/${entry.name}`, `${prefix}${entry.name}/`)) return false;
      } else if (files.add(prefix + entry.name).size > most) return false;
    }
    return true;
  };
  try {
    return visit(directory, "") ? files : null;
  } catch {
    return null;
  }
}

function readNames(
  directory: string,
): { name: string; isDirectory(): boolean; isFile(): boolean; isSymbolicLink(): boolean }[] {
  return readdirSync(directory, { withFileTypes: true });
}

/** rmSync would take twice as long: it tries each folder as an empty one first, and fails. */
function removeEntries(directory: string): void {
  for (const entry of readNames(directory)) {
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory()) removeEntries(path);
    else unlinkSync(path);
  }
  rmdirSync(directory);
}

/** Removes `directory`. What Node cannot remove (unreadable folders, paths of endless depth) is left to chmod and rm. */
export async function removeTree(directory: string): Promise<void> {
  const stat = lstatSync(directory, { throwIfNoEntry: false });
  try {
    // A link in its place leads to what is not ours to remove.
    if (stat?.isDirectory()) removeEntries(directory);
    else if (stat) unlinkSync(directory);
  } catch {
    const run = promisify(execFile);
    const options = { timeout: 60_000, killSignal: "SIGKILL" as const };
    await run("chmod", ["-R", "u+rwX", "--", directory], options).catch(() => undefined);
    await run("rm", ["-rf", "--", directory], options).catch(() => undefined);
  }
}

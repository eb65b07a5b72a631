// Files of a sandbox's tree that are what they seem, read and written by the host itself: what the resident shell would
// do with them costs a process and two round trips. Anything else is left to the shell, which has the agent's rights and
// says what is wrong.
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  type Stats,
  writeSync,
} from "node:fs";
import { TEXT_BYTES } from "./own-files.ts";
import type { Owner } from "./tree.ts";

/** A larger text is the shell's to write, so that the sandbox's group pays for its memory. */
const WRITTEN_BYTES = 64 * 1024;

const DIRECTORY = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const OPEN = constants.O_NOFOLLOW | constants.O_NONBLOCK;
const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
const READ_RIGHT = 0o400;
const WRITE_RIGHT = 0o200;
const SEARCH_RIGHT = 0o100;
const RUN_RIGHT = SEARCH_RIGHT;
/** Set-user-id, set-group-id: what a write or a new file makes of them depends on who does it. */
const SPECIAL = 0o6000;

export interface PlainPath {
  /** The host's path of the tree, and the names that lead from it to the file. */
  root: string;
  names: readonly string[];
  /** Whose the tree and its files must be; undefined is the host process's own user. */
  owner: Owner | undefined;
}

/** The names below `root` that `path` is made of, or null where it is not of plain names. */
export function namesBelow(root: string, path: string): string[] | null {
  if (!path.startsWith(`${root}/`)) return null;
  const names = path.slice(root.length + 1).split("/");
  return names.some((name) => name === "" || name === "." || name === "..") ? null : names;
}

function owned(stat: Stats, owner: Owner | undefined): boolean {
  return stat.uid === (owner ? owner.uid : process.getuid?.());
}

/**
 * Does `use` with the path of the file by way of its folder's descriptor. Each folder must be a folder, the owner's, and
 * one that he may search: a link that is swapped in between two steps leads nowhere (see tree.ts).
 */
function inFolder<T>({ root, names, owner }: PlainPath, use: (path: string, folder: Stats) => T): T | null {
  let folder = openSync(root, DIRECTORY);
  try {
    for (const name of names.slice(0, -1)) {
      const stat = fstatSync(folder);
      if (!owned(stat, owner) || !(stat.mode & SEARCH_RIGHT)) return null;
      const next = openSync(`/proc/self/fd/${folder}/${name}`, DIRECTORY);
      closeSync(folder);
      folder = next;
    }
    const stat = fstatSync(folder);
    if (!owned(stat, owner) || !(stat.mode & SEARCH_RIGHT)) return null;
    return use(`/proc/self/fd/${folder}/${names.at(-1)}`, stat);
  } finally {
    closeSync(folder);
  }
}

/** A regular file of the owner's, with `right`, under no other name. */
function isPlain(stat: Stats, owner: Owner | undefined, right: number): boolean {
  return stat.isFile() && stat.nlink === 1 && owned(stat, owner) && (stat.mode & right) !== 0;
}

function quietly<T>(work: () => T | null): T | null {
  try {
    return work();
  } catch {
    return null;
  }
}

/** The file's bytes and whether its owner may run it, or null where the shell has to look. */
export function readPlain(at: PlainPath): { bytes: Buffer; executable: boolean } | null {
  return quietly(() =>
    inFolder(at, (path) => {
      const file = openSync(path, constants.O_RDONLY | OPEN);
      try {
        const stat = fstatSync(file);
        if (!isPlain(stat, at.owner, READ_RIGHT) || stat.size > TEXT_BYTES) return null;
        const bytes = readFileSync(file);
        // A text holds no NUL; and it may have grown.
        if (bytes.length > TEXT_BYTES || bytes.includes(0)) return null;
        return { bytes, executable: (stat.mode & RUN_RIGHT) !== 0 };
      } finally {
        closeSync(file);
      }
    }),
  );
}

/**
 * Puts `bytes` into a file that is there; with `create` also into a new one, as a shell would that has this process's
 * umask. False where the shell has to do it, from the beginning.
 */
export function writePlain(at: PlainPath, bytes: Buffer, create: boolean): boolean {
  if (bytes.length > WRITTEN_BYTES) return false;
  const fill = (file: number): true => {
    for (let offset = 0; offset < bytes.length; ) offset += writeSync(file, bytes, offset);
    return true;
  };
  const overwrite = (path: string): boolean | null => {
    const file = openSync(path, constants.O_WRONLY | OPEN);
    try {
      const stat = fstatSync(file);
      if (!isPlain(stat, at.owner, WRITE_RIGHT) || stat.mode & SPECIAL) return null;
      ftruncateSync(file);
      return fill(file);
    } finally {
      closeSync(file);
    }
  };
  const make = (path: string): boolean => {
    const file = openSync(path, CREATE, 0o600);
    try {
      if (at.owner) fchownSync(file, at.owner.uid, at.owner.gid);
      fchmodSync(file, 0o666 & ~process.umask());
      return fill(file);
    } finally {
      closeSync(file);
    }
  };
  const written = quietly(() =>
    inFolder(at, (path, folder) => {
      try {
        return overwrite(path);
      } catch (error) {
        const right = folder.mode & WRITE_RIGHT && !(folder.mode & SPECIAL);
        if (!create || !right || (error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
        return make(path);
      }
    }),
  );
  return written === true;
}

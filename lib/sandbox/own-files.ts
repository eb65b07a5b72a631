// Files of the host's own that lie among an agent's for a moment.
import { randomBytes } from "node:crypto";
import {
  closeSync,
  constants,
  fchownSync,
  fstatSync,
  openSync,
  readFileSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import type { Owner } from "./tree.ts";

/** Largest text that goes in or out, and largest diff. */
export const TEXT_BYTES: number = 8 * 1024 * 1024;

const pool = { bytes: Buffer.alloc(0), used: 0 };

/** Hexadecimal digits that nobody can foresee, two a byte. Drawn in advance: each draw costs as much as a hundred bytes. */
export function secret(bytes: number): string {
  if (pool.used + bytes > pool.bytes.length) {
    pool.bytes = randomBytes(4096);
    pool.used = 0;
  }
  pool.used += bytes;
  return pool.bytes.toString("hex", pool.used - bytes, pool.used);
}

/** A name that cannot be foreseen. */
export function temporaryName(): string {
  return `.${secret(12)}`;
}

/** Writes a file that must not exist, and follows no link to do so. */
export function writeNew(path: string, bytes: Buffer, owner: Owner | undefined): void {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const file = openSync(path, flags, 0o600);
  try {
    for (let offset = 0; offset < bytes.length; ) offset += writeSync(file, bytes, offset);
    if (owner) fchownSync(file, owner.uid, owner.gid);
  } catch (error) {
    unlinkSync(path);
    throw error;
  } finally {
    closeSync(file);
  }
}

/** What the inside wrote to a temporary file; null where it is no file any more or holds over TEXT_BYTES. */
export function readOwn(path: string): Buffer | null {
  let file: number;
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch {
    return null;
  }
  try {
    const stat = fstatSync(file);
    return stat.isFile() && stat.size <= TEXT_BYTES ? readFileSync(file) : null;
  } finally {
    closeSync(file);
  }
}

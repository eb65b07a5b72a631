// Files that a run depends on: written whole, made durable, and faults of the file system said in words that help.
import { open, readdir, rename } from "node:fs/promises";
import path from "node:path";
import { isTokenringError, TokenringError } from "../errors.ts";

export function fault(
  message: string,
  options: { cause?: unknown; details?: Record<string, unknown> } = {},
): TokenringError {
  return new TokenringError("ERR_TOKENRING_RUN_DIRECTORY", message, options);
}

const FULL = "no space left on the device; free some and resume, nothing that was finished is lost";
const QUOTA = "the disk quota is used up; free some space and resume, nothing that was finished is lost";

/** What the file system said, to us or to the native writer of weights, in words that help. */
function explain(error: unknown, where: string): unknown {
  if (isTokenringError(error)) {
    if (error.code !== "ERR_TOKENRING_CHECKPOINT") return error;
    if (error.message.includes("No space left on device"))
      return fault(`${where}: ${FULL}`, { cause: error });
    if (error.message.includes("Disk quota exceeded")) return fault(`${where}: ${QUOTA}`, { cause: error });
    return error;
  }
  const code = (error as NodeJS.ErrnoException).code;
  const cures: Record<string, string> = {
    ENOSPC: FULL,
    EDQUOT: QUOTA,
    EACCES: "no permission to write; give another directory or change its owner",
    EPERM: "no permission to write; give another directory or change its owner",
    EROFS: "the file system is read-only; give another directory",
    ENOTDIR: "a part of the path is a file; give another directory",
    EEXIST: "a file is in the way; give another directory",
  };
  const cure = code === undefined ? undefined : cures[code];
  return cure === undefined ? error : fault(`${where}: ${cure}`, { cause: error });
}

/** `work`, with faults of the file system under `where` explained. */
export async function guarded<T>(where: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw explain(error, where);
  }
}

export async function syncDirectory(directory: string): Promise<void> {
  await using handle = await open(directory, "r");
  await handle.sync();
}

/** Replaces `file` so that a reader, and a reader after a crash, sees the old or the new content whole. */
export async function writeAtomic(file: string, text: string): Promise<void> {
  const temporary = `${file}.tmp`;
  {
    await using handle = await open(temporary, "w");
    await handle.writeFile(text);
    await handle.sync();
  }
  await rename(temporary, file);
  await syncDirectory(path.dirname(file));
}

/** Makes a folder durable with every file in it. */
export async function syncTree(directory: string): Promise<void> {
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    await using handle = await open(path.join(entry.parentPath, entry.name), "r");
    await handle.sync();
  }
  await syncDirectory(directory);
}

export const isMissing = (error: unknown): boolean =>
  ["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "");

export const RESTORE = "restore it from a copy or start a new run";

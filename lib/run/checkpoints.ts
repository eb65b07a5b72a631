// The checkpoints of a run: each appears whole or not at all.
import { mkdir, readdir, readlink, rename, rm, stat, symlink } from "node:fs/promises";
import path from "node:path";
import { TokenringError } from "../errors.ts";
import { fault, guarded, isMissing, RESTORE, syncDirectory, syncTree } from "./files.ts";

/** Marks a checkpoint between two stages: `saveProgress` removes it when a newer one has taken its place. */
export const ROLLING = ".at-";

/** Undoes a checkpoint that was being saved when the job was killed; `kept` is the one that the state speaks of. */
export async function tidyCheckpoints(root: string, kept: string | null): Promise<void> {
  const names = await readdir(root).catch((error: unknown) => {
    if (!isMissing(error)) throw error;
    throw fault(`${root}: missing, the run is damaged; ${RESTORE}`, { cause: error });
  });
  for (const hidden of names.filter((name) => name.startsWith("."))) {
    const from = path.join(root, hidden);
    const replaced = hidden.startsWith(".old-") ? hidden.slice(".old-".length) : null;
    if (replaced !== null && !names.includes(replaced)) await rename(from, path.join(root, replaced));
    else await rm(from, { recursive: true });
  }
  await removeRolling(root, kept);
}

/** Removes the rolling checkpoints but the one that is `kept`. */
export async function removeRolling(root: string, kept: string | null): Promise<void> {
  for (const name of await readdir(root))
    if (name.includes(ROLLING) && name !== kept) await rm(path.join(root, name), { recursive: true });
}

/**
 * Lets `write` fill an empty folder, which then becomes <root>/<name>, and `latest` points to it where asked. A crash
 * leaves the old checkpoint of that name or the new one. Returns its path.
 */
export async function saveCheckpoint(
  root: string,
  name: string,
  write: (directory: string) => Promise<void>,
  isLatest: boolean,
): Promise<string> {
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name) || name === "latest") {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `checkpoint name ${JSON.stringify(name)}: use letters, digits, ".", "_" and "-", and not "latest"`,
    );
  }
  const target = path.join(root, name);
  const temporary = path.join(root, `.new-${name}`);
  const old = path.join(root, `.old-${name}`);
  return guarded(target, async () => {
    await rm(temporary, { recursive: true, force: true });
    await mkdir(temporary);
    try {
      await write(temporary);
      await syncTree(temporary);
    } catch (error) {
      await rm(temporary, { recursive: true, force: true });
      throw error;
    }
    const replaced = await stat(target).catch(() => null);
    if (replaced) await rename(target, old);
    await rename(temporary, target);
    if (replaced) await rm(old, { recursive: true });
    if (isLatest) {
      const link = path.join(root, ".latest");
      await rm(link, { force: true });
      await symlink(name, link);
      await rename(link, path.join(root, "latest"));
    }
    await syncDirectory(root);
    return target;
  });
}

/**
 * The checkpoint `name` of the run in `directory`, or its newest one. Takes no lock. Throws
 * ERR_TOKENRING_RUN_DIRECTORY that names the checkpoints there are.
 */
export async function findCheckpoint(
  directory: string,
  name?: string,
): Promise<{ name: string; path: string }> {
  const root = path.resolve(directory, "checkpoints");
  const entries = await readdir(root, { withFileTypes: true }).catch(() => []);
  const names = entries
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith("."))
    .map((e) => e.name);
  const latest = await readlink(path.join(root, "latest")).catch(() => null);
  const wanted = name === undefined || name === "latest" ? latest : name;
  if (wanted !== null && names.includes(wanted)) return { name: wanted, path: path.join(root, wanted) };
  const there = names.sort().join(", ");
  const which = wanted === null ? "" : ` named ${wanted}`;
  const message =
    names.length === 0
      ? `no checkpoint${which}; it has none yet`
      : wanted === name
        ? `no checkpoint${which}; it has ${there}`
        : `its link "latest" leads nowhere; name one with --checkpoint: ${there}`;
  throw fault(`${directory}: ${message}`, { details: { checkpoints: names } });
}

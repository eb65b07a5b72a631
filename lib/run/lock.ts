// One writer per run directory: a lock file that names its owner and is taken over when the owner is dead.
import { link, readFile, rename, rm, unlink, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import path from "node:path";
import { TokenringError } from "../errors.ts";

interface Owner {
  pid: number;
  host: string;
  /** Start time of the process in clock ticks since boot, so that a reused pid is not mistaken for the owner. */
  started: string | null;
}

/** Fields 3 and 22 of /proc/<pid>/stat; null where there is no such process or no /proc. */
async function statOf(pid: number): Promise<{ state: string; started: string } | null> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8");
    // The second field is the command in parentheses and may hold anything, so count from its end.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return { state: fields[0] as string, started: fields[19] as string };
  } catch {
    return null;
  }
}

async function alive(owner: Owner): Promise<boolean> {
  try {
    process.kill(owner.pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
  }
  const stat = await statOf(owner.pid);
  if (stat === null) return true;
  // A zombie writes nothing any more, though its parent has not asked for its end yet.
  if (stat.state === "Z" || stat.state === "X") return false;
  return owner.started === null || stat.started === owner.started;
}

function parse(text: string): Owner | null {
  try {
    const owner = JSON.parse(text) as Partial<Owner>;
    if (typeof owner.pid !== "number" || typeof owner.host !== "string") return null;
    return { pid: owner.pid, host: owner.host, started: owner.started ?? null };
  } catch {
    return null;
  }
}

/** Whether somebody holds the lock `file`: a living process, or one on another host, of which nobody here can know. */
export async function isLocked(file: string): Promise<boolean> {
  const held = await readFile(file, "utf8").catch(() => null);
  const owner = held === null ? null : parse(held);
  return owner !== null && (owner.host !== hostname() || (await alive(owner)));
}

let attempts = 0;

/**
 * Takes the lock `file`. Returns the function that gives it back. Throws ERR_TOKENRING_RUN_DIRECTORY when a living
 * process holds it, or one on another host, of which nobody here can know.
 */
export async function takeLock(file: string): Promise<() => Promise<void>> {
  const mine: Owner = {
    pid: process.pid,
    host: hostname(),
    started: (await statOf(process.pid))?.started ?? null,
  };
  const text = JSON.stringify(mine);
  const own = `${file}.${process.pid}.${attempts++}`;
  const directory = path.dirname(file);
  await writeFile(own, text);
  try {
    for (;;) {
      try {
        // A link appears whole or not at all, and fails when the name is taken.
        await link(own, file);
        return async () => {
          if ((await readFile(file, "utf8").catch(() => "")) === text) await rm(file, { force: true });
        };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
      const held = await readFile(file, "utf8").catch(() => null);
      if (held === null) continue;
      const owner = parse(held);
      if (owner !== null && (owner.host !== mine.host || (await alive(owner)))) {
        const cure =
          owner.host === mine.host
            ? "wait for it or stop it, or use another directory"
            : `if that process is gone, delete ${file}`;
        throw new TokenringError(
          "ERR_TOKENRING_RUN_DIRECTORY",
          `${directory}: locked by process ${owner.pid} on ${owner.host}; ${cure}`,
          { details: { ...owner, file } },
        );
      }
      await removeStale(file, held, `${own}.stale`);
    }
  } finally {
    await unlink(own);
  }
}

/** Moves the stale lock away; if another process was quicker and its lock came along, that one is put back. */
async function removeStale(file: string, seen: string, aside: string): Promise<void> {
  try {
    await rename(file, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if ((await readFile(aside, "utf8")) !== seen) await link(aside, file).catch(() => {});
  await rm(aside, { force: true });
}

// A repository as it was at a commit, without what came after: an agent that may read the history must not find the
// solution in it.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, rename, rm } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { TokenringError } from "../errors.ts";

const QUIET = { GIT_CONFIG_NOSYSTEM: "1", GIT_CONFIG_GLOBAL: "/dev/null", LC_ALL: "C.UTF-8" };

function git(directory: string, ...args: string[]): ReturnType<typeof spawn> {
  return spawn("git", ["-C", directory, "-c", "core.hooksPath=/dev/null", ...args], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { PATH: process.env.PATH, ...QUIET },
  });
}

async function ended(child: ReturnType<typeof spawn>, what: string): Promise<void> {
  let said = "";
  child.stderr?.on("data", (data: Buffer) => {
    said = (said + data.toString()).slice(-500);
  });
  const [code] = (await once(child, "close")) as [number | null];
  if (code === 0) return;
  throw new TokenringError(
    "ERR_TOKENRING_TASK",
    `${what}: git failed: ${said.trim().split("\n").at(-1) ?? code}`,
  );
}

async function run(directory: string, what: string, ...args: string[]): Promise<void> {
  const child = git(directory, ...args);
  child.stdout?.resume();
  child.stdin?.end();
  await ended(child, what);
}

/**
 * Writes to `target`, which must not exist, a repository with a branch `main` at `commit` of `source`, the commits
 * before it, and nothing else: no later commits, tags, remotes, reflogs, hooks or settings. It appears complete or not
 * at all.
 * @throws ERR_TOKENRING_TASK when git cannot (no such commit, no git).
 */
export async function pristineRepository(source: string, commit: string, target: string): Promise<void> {
  const what = `${source} at ${commit}`;
  if (!/^[0-9a-f]{40}$/.test(commit))
    throw new TokenringError("ERR_TOKENRING_TASK", `${what}: give the whole hash of a commit`);
  const building = `${target}.${process.pid}.part`;
  await rm(building, { recursive: true, force: true });
  await mkdir(building, { recursive: true });
  try {
    await run(building, what, "init", "-q", "--template=", "-b", "main");
    const pack = git(source, "pack-objects", "--revs", "--stdout", "-q");
    const unpack = git(building, "index-pack", "--stdin");
    unpack.stdout?.resume();
    pack.stdin?.end(`${commit}\n`);
    const moved = pipeline(pack.stdout as NodeJS.ReadableStream, unpack.stdin as NodeJS.WritableStream);
    const [packed, unpacked] = await Promise.allSettled([ended(pack, what), ended(unpack, what), moved]);
    for (const result of [packed, unpacked]) if (result.status === "rejected") throw result.reason;
    await run(building, what, "update-ref", "--no-deref", "refs/heads/main", commit);
    await run(building, what, "reset", "-q", "--hard", "main");
    // Written by what was done just now.
    for (const left of ["logs", "ORIG_HEAD", "FETCH_HEAD"])
      await rm(`${building}/.git/${left}`, { recursive: true, force: true });
    await rename(building, target);
  } finally {
    await rm(building, { recursive: true, force: true });
  }
}

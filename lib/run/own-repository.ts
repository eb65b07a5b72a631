// A user's own repository: looked at, copied for an agent to work on, and touched only to apply a patch.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, lstat, mkdir } from "node:fs/promises";
import path from "node:path";
import { TokenringError } from "../errors.ts";
import { pristineRepository } from "../tasks/pristine.ts";

/** A user's git repository, clean at a commit. */
export interface OwnRepository {
  /** The top of its working tree. */
  readonly root: string;
  /** The commit that it stands at. */
  readonly commit: string;
  /** Files that git does not follow and does not ignore; the copy is without them. */
  readonly untracked: number;
}

function refuse(message: string, options: { cause?: unknown } = {}): TokenringError {
  return new TokenringError("ERR_TOKENRING_TASK", message, options);
}

/** Runs git in the user's own repository, with the user's own settings; `input` goes to its standard input. */
async function git(
  directory: string,
  args: readonly string[],
  input?: string,
): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const child = spawn("git", ["-C", directory, ...args], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C.UTF-8", GIT_OPTIONAL_LOCKS: "0" },
    timeout: 60_000,
  });
  const read = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8");
    child[name].on("data", (chunk: string) => {
      read[name] += chunk;
    });
  }
  // A git that has ended already reads no input.
  child.stdin.on("error", () => {});
  child.stdin.end(input ?? "");
  const [code] = (await once(child, "close").catch((cause: unknown) => {
    throw refuse(`git cannot be run: ${(cause as Error).message}; install git`, { cause });
  })) as [number | null];
  return { code, ...read };
}

const lastLine = (text: string): string => text.trim().split("\n").at(-1) ?? "";

/** Paths of followed files whose content is not that of the commit. */
async function changed(root: string): Promise<string[]> {
  const { code, stdout, stderr } = await git(root, ["status", "--porcelain", "-z", "--untracked-files=no"]);
  if (code !== 0) throw refuse(`${root}: git status fails: ${lastLine(stderr)}`);
  return stdout
    .split("\0")
    .filter((entry) => entry !== "")
    .map((entry) => entry.slice(3));
}

/**
 * The repository around `directory`. Only looks.
 * @throws ERR_TOKENRING_TASK when there is none, it has no commit, or followed files were changed since.
 */
export async function ownRepository(directory: string): Promise<OwnRepository> {
  const at = path.resolve(directory);
  if (!(await lstat(at).catch(() => null)))
    throw refuse(`${directory}: there is no such directory; check --repo`);
  const top = await git(at, ["rev-parse", "--show-toplevel"]);
  if (top.code !== 0) {
    throw refuse(
      `${directory}: no working tree of a git repository (${lastLine(top.stderr)}); give one, or make it one: ` +
        "git init, git add, git commit",
    );
  }
  const root = top.stdout.replace(/\n$/, "");
  const head = await git(root, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]);
  if (head.code !== 0) throw refuse(`${root}: has no commit yet; commit what the agent is to work on`);
  const commit = head.stdout.trim();
  if (commit.length !== 40)
    throw refuse(
      `${root}: names its commits by SHA-256, which sandboxes cannot read; give a repository with SHA-1`,
    );
  const dirty = await changed(root);
  if (dirty.length > 0) {
    const shown = dirty.slice(0, 3).join(", ");
    const more = dirty.length > 3 ? ` and ${dirty.length - 3} more` : "";
    throw refuse(
      `${root}: has changes that are not committed (${shown}${more}), which a patch could run into; commit or stash them`,
    );
  }
  const others = await git(root, ["ls-files", "--others", "--exclude-standard", "-z"]);
  const untracked = others.stdout.split("\0").filter((name) => name !== "").length;
  return { root, commit, untracked };
}

/**
 * A copy of the repository at its commit in `target`, which must not exist: with its history, without remotes, hooks,
 * settings, and files that git does not follow but for those of `extra` (paths from its top, such as node_modules).
 * @throws ERR_TOKENRING_TASK naming the path that is missing or lies outside, or what git says.
 */
export async function privateCopy(
  { root, commit }: OwnRepository,
  target: string,
  extra: readonly string[] = [],
): Promise<void> {
  const sources = extra.map((name) => {
    const inside = path.relative(root, path.resolve(root, name));
    const first = inside.split(path.sep)[0];
    if (inside !== "" && first !== ".." && first !== ".git" && !path.isAbsolute(inside)) return inside;
    throw refuse(`${name}: lies outside of ${root}'s files; give paths from its top`);
  });
  for (const inside of sources) {
    if (!(await lstat(path.join(root, inside)).catch(() => null)))
      throw refuse(`${path.join(root, inside)}: there is no such file or folder to copy; check the path`);
  }
  await pristineRepository(root, commit, target);
  // Where a clone's history was cut off, its copy's is.
  const shallow = await git(root, ["rev-parse", "--git-path", "shallow"]);
  const cut = path.resolve(root, shallow.stdout.trim());
  if (await lstat(cut).catch(() => null)) await cp(cut, path.join(target, ".git", "shallow"));
  for (const inside of sources) {
    await mkdir(path.dirname(path.join(target, inside)), { recursive: true });
    await cp(path.join(root, inside), path.join(target, inside), {
      recursive: true,
      verbatimSymlinks: true,
      force: false,
    });
  }
}

/**
 * Applies a git patch to the user's working tree, all of it or nothing.
 * @throws ERR_TOKENRING_TASK when the tree is no longer as it was, or git refuses; nothing is changed then.
 */
export async function applyPatch({ root, commit }: OwnRepository, patch: string): Promise<void> {
  const head = await git(root, ["rev-parse", "HEAD"]);
  if (head.stdout.trim() !== commit || (await changed(root)).length > 0) {
    throw refuse(
      `${root}: was changed while the agent worked, so the patch was not applied; apply it by git apply`,
    );
  }
  const { code, stderr } = await git(root, ["apply", "--whitespace=nowarn", "-"], patch);
  if (code !== 0)
    throw refuse(`${root}: git apply refuses the patch, nothing was changed: ${lastLine(stderr)}`);
}

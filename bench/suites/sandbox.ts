// Sandboxes: a resident shell over a private copy, against what a script would do with the same programs: git clone,
// and a bubblewrap of its own for every command.
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Instance, localBackend, type SandboxBackend, tinyswe } from "tokenring";
import type { Case } from "../measure.ts";
import type { Suite } from "../suites.ts";

const COMMANDS = 20;
const COMMAND = "cat test.py";
const DEADLINE_MS = 30_000;

const run = promisify(execFile);

async function bwrap(tree: string, command: string): Promise<void> {
  const isolation = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"];
  const mounts = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"];
  const own = ["--bind", tree, "/tmp/repo", "--chdir", "/tmp/repo"];
  await run("bwrap", [...isolation, ...mounts, ...own, "bash", "-c", command], { timeout: DEADLINE_MS });
}

async function clone(repository: string, tree: string): Promise<void> {
  await run("git", ["clone", "--quiet", "--no-hardlinks", repository, tree], { timeout: DEADLINE_MS });
}

interface Ground {
  repository: string;
  backend: SandboxBackend;
  /** For the peer's clones. */
  directory: string;
  close(): Promise<void>;
}

async function openGround(): Promise<Ground> {
  const tasks = tinyswe({ seed: 1, train: 1, heldOut: 0 });
  const repository = await tasks.repository(tasks.train[0] as Instance);
  const backend = await localBackend({ onWarning: (message) => process.stderr.write(`${message}\n`) });
  const directory = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "tokenring-bench-"));
  return {
    repository,
    backend,
    directory,
    async close() {
      await backend.dispose();
      await tasks.dispose();
      await rm(directory, { recursive: true });
    },
  };
}

/** Kinds that bubblewrap is a peer of: they isolate as it does. */
const APART: readonly string[] = ["namespaces", "bubblewrap"];

async function commands(): Promise<Case> {
  const { repository, backend, directory, close } = await openGround();
  try {
    const resident = await backend.open({ repository });
    const tree = join(directory, "tree");
    await clone(repository, tree);
    return {
      name: `commands in an open sandbox (${COMMAND})`,
      unit: "commands/s",
      work: COMMANDS,
      ours: async () => {
        for (let i = 0; i < COMMANDS; i++) await resident.exec(COMMAND);
      },
      peers: {
        "one bwrap a command": async () =>
          APART.includes(backend.name)
            ? {
                name: "bwrap",
                call: async () => {
                  for (let i = 0; i < COMMANDS; i++) await bwrap(tree, COMMAND);
                },
              }
            : null,
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function sandboxes(): Promise<Case> {
  const { repository, backend, directory, close } = await openGround();
  let clones = 0;
  return {
    name: "sandboxes opened on a repository, used once, and closed",
    unit: "sandboxes/s",
    work: 1,
    ours: async () => {
      const opened = await backend.open({ repository });
      await opened.exec("true");
      await opened.close();
    },
    peers: {
      "git clone and one bwrap": async () =>
        APART.includes(backend.name)
          ? {
              name: "git and bwrap",
              call: async () => {
                const copy = join(directory, `clone-${clones++}`);
                await clone(repository, copy);
                await bwrap(copy, "true");
                await rm(copy, { recursive: true });
              },
            }
          : null,
    },
    close,
  };
}

export const sandbox: Suite = {
  name: "sandbox",
  about: "commands in sandboxes, and sandboxes opened, against git clone and bubblewrap",
  cases: [commands, sandboxes],
};

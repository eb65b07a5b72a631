// Sandboxes: a resident shell over a private copy, against what a script would do with the same programs: git clone,
// and a bubblewrap of its own for every command.
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync } from "node:fs";
import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { findProgram, systemMounts } from "../lib/sandbox/host.ts";
import { localBackend } from "../lib/sandbox/local.ts";
import { tinyswe } from "../lib/tasks/tinyswe/tinyswe.ts";
import type { Instance } from "../lib/tasks/types.ts";
import type { Suite } from "./compare.ts";

const COMMANDS = 20;
const COMMAND = "cat test.py";
const DEADLINE_MS = 30_000;

const run = promisify(execFile);

async function bwrap(tree: string, command: string): Promise<void> {
  const isolation = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"];
  const mounts = [...systemMounts(), "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"];
  const own = ["--bind", tree, "/repo", "--chdir", "/repo"];
  await run("bwrap", [...isolation, ...mounts, ...own, "bash", "-c", command], { timeout: DEADLINE_MS });
}

async function clone(repository: string, tree: string): Promise<void> {
  await run("git", ["clone", "--quiet", "--no-hardlinks", repository, tree], { timeout: DEADLINE_MS });
}

export const sandbox: Suite = {
  name: "sandbox",
  async open() {
    const tasks = tinyswe({ seed: 1, train: 1, heldOut: 0 });
    const repository = await tasks.repository(tasks.train[0] as Instance);
    const backend = await localBackend({ onWarning: (message) => process.stderr.write(`${message}\n`) });
    const resident = await backend.open({ repository });
    const directory = mkdtempSync(join(existsSync("/dev/shm") ? "/dev/shm" : tmpdir(), "tokenring-bench-"));
    const tree = join(directory, "tree");
    const close = async (): Promise<void> => {
      await backend.dispose();
      await tasks.dispose();
      await rm(directory, { recursive: true });
    };
    try {
      await clone(repository, tree);
    } catch (error) {
      await close();
      throw error;
    }
    const peer = findProgram("bwrap") !== null && backend.name === "bubblewrap";
    let clones = 0;
    return {
      comparisons: [
        {
          name: `commands in an open sandbox (${COMMAND})`,
          unit: "commands/s",
          work: COMMANDS,
          ours: async () => {
            for (let i = 0; i < COMMANDS; i++) await resident.exec(COMMAND);
          },
          peer: peer
            ? {
                name: "one bwrap a command",
                call: async () => {
                  for (let i = 0; i < COMMANDS; i++) await bwrap(tree, COMMAND);
                },
              }
            : null,
        },
        {
          name: "sandboxes opened on a repository, used once, and closed",
          unit: "sandboxes/s",
          work: 1,
          ours: async () => {
            const opened = await backend.open({ repository });
            await opened.exec("true");
            await opened.close();
          },
          peer: peer
            ? {
                name: "git clone and one bwrap",
                call: async () => {
                  const copy = join(directory, `clone-${clones++}`);
                  await clone(repository, copy);
                  await bwrap(copy, "true");
                  await rm(copy, { recursive: true });
                },
              }
            : null,
        },
      ],
      close,
    };
  },
};

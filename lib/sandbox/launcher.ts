// The program that starts the sandboxes (native/sandbox): a small process of its own. Forking from Node copies the page
// tables of a trainer that may hold gigabytes (40 ms for 2 GiB); forking from here costs a fraction of a millisecond
// whatever the trainer holds. Where it may mount, it does so where nobody else sees it, and all of it goes with it.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { closeSync, constants, existsSync, openSync, readFileSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { sandboxBroken } from "./errors.ts";
import type { Shown } from "./host.ts";
import { type Owner, removeTree, type TreeSize } from "./tree.ts";

const REPLY_MS = 20_000;
const STOP_MS = 10_000;
/** What starts a sandbox or has just died of one counts in its group as well. */
const OWN_PROCESSES = 8;

/** lib/sandbox/launcher.ts and dist/sandbox/launcher.js lie equally deep in the package. */
export const LAUNCHER_PROGRAM: string = fileURLToPath(
  new URL("../../build/Release/tokenring_sandbox", import.meta.url),
);

/** A place for one sandbox: the pipes `in` and `out`, and `err` with what a failed start said. */
export interface Slot {
  readonly id: number;
  readonly directory: string;
  /** Where this process finds the sandbox's `repo` and `tmp`. */
  readonly files: string;
  /** Whose they are. */
  readonly owner: Owner | undefined;
}

export interface StartLimits {
  /** What the sandbox's files may take, where they lie on a file system of their own. */
  disk: TreeSize;
  /** Of all its processes and files together, where control groups can be had. */
  memoryBytes: number;
  processes: number;
}

/** How a kind of sandbox is started by the launcher. */
export interface LaunchPlan {
  /** Environment of the launcher and of all below it. */
  env: Readonly<Record<string, string>>;
  /** Whether each sandbox has a file system of its own. */
  mounts: boolean;
  /** Who owns a slot's files and runs its processes; undefined is the host process's own user. */
  slotOwner(slot: number): Owner | undefined;
  /**
   * What is asked of the launcher (see native/sandbox/main.cc), and the command line of the first process. `root`: what
   * the launcher must have made before, once for all who name it.
   */
  start(request: { slot: Slot; base: string; workdir: string }): {
    options: string[];
    arguments: string[];
    root?: { name: string; owner: Owner | undefined; shown: readonly Shown[] };
  };
}

/** The version of the kernel's Landlock; 0 where there is none, or the launcher does not run. */
export function landlockVersion(): number {
  return Number(spawnSync(LAUNCHER_PROGRAM, ["landlock"], { encoding: "utf8", timeout: 10_000 }).stdout ?? 0);
}

interface Waiting {
  resolve(value: string): void;
  reject(error: Error): void;
  timer: NodeJS.Timeout;
}

export class Launcher {
  readonly #scratch: string;
  readonly #plan: LaunchPlan;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<string, Waiting>();
  readonly #free: Slot[] = [];
  readonly #overlaid = new Set<Slot>();
  readonly #exited: Promise<void>;
  readonly #roots = new Map<string, Promise<string>>();
  #nextSlot: number;
  #count = 0;
  #reply = "";
  #dead = false;
  /** The root of the launcher's mounts as a descriptor of this process. */
  #root = -1;
  #groups = "";

  /**
   * `firstSlot`: slots below it were used by an earlier launcher of the same scratch directory.
   * @throws ERR_TOKENRING_SANDBOX when this kind of launcher does not work here.
   */
  static async start(scratch: string, plan: LaunchPlan, firstSlot: number): Promise<Launcher> {
    if (!existsSync(LAUNCHER_PROGRAM)) {
      throw sandboxBroken(`There is no ${LAUNCHER_PROGRAM}, which starts sandboxes: run \`npm run build\`.`);
    }
    // Its predecessor's, which may not be written over.
    rmSync(`${scratch}/filter`, { force: true });
    const launcher = new Launcher(scratch, plan, firstSlot);
    try {
      // Its first words answer nothing that was asked.
      launcher.#groups = await launcher.#await("0");
      if (plan.mounts) {
        launcher.#root = openSync(
          `/proc/${launcher.#child.pid}/root`,
          constants.O_RDONLY | constants.O_DIRECTORY,
        );
      }
      return launcher;
    } catch (error) {
      await launcher.stop();
      throw error;
    }
  }

  private constructor(scratch: string, plan: LaunchPlan, firstSlot: number) {
    this.#scratch = scratch;
    this.#plan = plan;
    this.#nextSlot = firstSlot;
    this.#child = spawn(LAUNCHER_PROGRAM, [plan.mounts ? "mounts" : "plain", scratch], {
      cwd: scratch,
      env: plan.env,
      stdio: ["pipe", "pipe", "ignore"],
      detached: true,
    });
    this.#exited = new Promise((resolve) => {
      this.#child.once("exit", () => {
        this.#fail();
        resolve();
      });
      this.#child.once("error", (cause) => {
        this.#fail(cause);
        resolve();
      });
    });
    this.#child.stdin?.on("error", () => this.#fail());
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => this.#read(text));
    // An idle launcher keeps nobody from ending; it ends itself when its input does.
    this.#child.unref();
    (this.#child.stdin as Socket | null)?.unref();
    (this.#child.stdout as Socket | null)?.unref();
  }

  get dead(): boolean {
    return this.#dead;
  }

  get nextSlot(): number {
    return this.#nextSlot;
  }

  /** Whether control groups limit the memory of a sandbox as a whole, and the number of its processes. */
  get groups(): { memory: boolean; processes: boolean } {
    return { memory: this.#groups.includes("memory"), processes: this.#groups.includes("processes") };
  }

  /** A free slot with empty folders `repo` and `tmp`; with `lower`, repo shows that folder of the host. */
  async acquire(lower: string | null): Promise<Slot> {
    const slot = this.#free.pop() ?? this.#newSlot();
    // The limit holds from the start on: what the host copies is not the agent's.
    const size = [2 ** 40, 2 ** 30];
    await this.#ask("disk", slot.id, ...size, slot.owner?.uid ?? "-", lower ?? "-");
    if (lower !== null) this.#overlaid.add(slot);
    return slot;
  }

  /** Gives back a slot in which no process is left; its files go. */
  async release(slot: Slot): Promise<void> {
    if (this.#dead) return;
    if (this.#overlaid.delete(slot)) await this.#ask("drop", slot.id);
    else for (const name of ["repo", "tmp"]) await removeTree(`${slot.files}/${name}`);
    this.#free.push(slot);
  }

  /** Changes what the sandbox's files may take, where they lie on a file system of their own. */
  async resize(slot: Slot, disk: TreeSize): Promise<void> {
    await this.#ask("resize", slot.id, disk.bytes, disk.entries);
  }

  /** Starts a sandbox in `slot`; the host must hold both pipes open. */
  async start(slot: Slot, base: string, workdir: string, limits: StartLimits): Promise<void> {
    const plan = this.#plan.start({ slot, base, workdir });
    if (plan.root) {
      const { name, owner, shown } = plan.root;
      const fields = shown.flatMap(({ kind, source, target }) => [kind, source, target]);
      const made = this.#roots.get(name) ?? this.#ask("root", name, owner?.uid ?? "-", ...fields);
      this.#roots.set(name, made);
      await made;
    }
    await this.#ask(
      ...["start", slot.id, `bytes=${limits.disk.bytes}`, `inodes=${limits.disk.entries}`],
      ...[`memory=${limits.memoryBytes + limits.disk.bytes}`],
      ...[`processes=${limits.processes + OWN_PROCESSES}`, ...plan.options, "--", ...plan.arguments],
    );
  }

  /** Kills what was started in `slot` and all that it began. */
  async kill(slot: Slot): Promise<void> {
    if (!this.#dead) await this.#ask("kill", slot.id);
  }

  /** As `kill`, without waiting. */
  killNow(slot: Slot): void {
    this.kill(slot).catch(() => undefined);
  }

  /** Bytes of files that the sandbox's processes hold open after their names have gone, as far as we may look. */
  async heldBytes(slot: Slot): Promise<number> {
    return Number(await this.#ask("held", slot.id));
  }

  /** The last line that a failed start left. */
  complaint(slot: Slot): string {
    try {
      return readFileSync(`${slot.directory}/err`, "utf8").trim().split("\n").at(-1) ?? "";
    } catch {
      return "";
    }
  }

  /** Ends it and all sandboxes, as far as that goes at once: it sees to the rest itself. */
  abandon(): void {
    this.#fail();
    this.#child.stdin?.destroy();
    this.#child.stdout?.destroy();
    if (this.#root >= 0) closeSync(this.#root);
    this.#root = -1;
  }

  async stop(): Promise<void> {
    this.abandon();
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), STOP_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  #newSlot(): Slot {
    const id = this.#nextSlot++;
    const directory = `${this.#scratch}/slots/${id}`;
    // Not /proc/self: programs that we start read these paths as well.
    const prefix = this.#plan.mounts ? `/proc/${process.pid}/fd/${this.#root}` : "";
    return { id, directory, files: `${prefix}${directory}/fs`, owner: this.#plan.slotOwner(id) };
  }

  #ask(verb: string, ...fields: (string | number)[]): Promise<string> {
    if (this.#dead) return Promise.reject(launcherDied());
    const id = String(++this.#count);
    const answer = this.#await(id, verb);
    const request = [fields.length + 2, id, verb, ...fields];
    this.#child.stdin?.write(`${request.join("\0")}\0`);
    return answer;
  }

  #await(id: string, verb = "start"): Promise<string> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(
          sandboxBroken(`No answer to "${verb}" from the program that starts sandboxes in ${REPLY_MS} ms.`),
        );
      }, REPLY_MS);
      this.#waiting.set(id, { resolve, reject, timer });
    });
  }

  #read(text: string): void {
    const lines = (this.#reply + text).split("\n");
    this.#reply = lines.pop() ?? "";
    for (const line of lines) {
      const space = line.indexOf(" ");
      const waiting = this.#waiting.get(line.slice(0, space));
      if (!waiting) continue;
      this.#waiting.delete(line.slice(0, space));
      clearTimeout(waiting.timer);
      const value = line.slice(space + 1);
      if (value.startsWith("!")) waiting.reject(sandboxBroken(`${value.slice(1)}.`));
      else waiting.resolve(value);
    }
  }

  #fail(cause?: Error): void {
    if (this.#dead) return;
    this.#dead = true;
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(launcherDied(cause));
    }
    this.#waiting.clear();
  }
}

function launcherDied(cause?: Error): Error {
  return sandboxBroken("The program that starts sandboxes has died.", { cause });
}

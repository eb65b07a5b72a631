// A small shell that starts the sandboxes. Forking from Node copies the page tables of a trainer that may hold
// gigabytes (40 ms for 2 GiB); forking from here costs a fraction of a millisecond whatever the trainer holds.
import { type ChildProcess, spawn } from "node:child_process";
import { chmodSync, chownSync, mkdirSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { sandboxBroken } from "./errors.ts";
import { quote } from "./host.ts";
import type { Owner } from "./tree.ts";

const SLOT_BATCH = 8;
const REPLY_MS = 20_000;

/** A place for one sandbox: `repo`, `tmp`, the pipes `in` and `out`, and `err` with what a failed start said. */
export interface Slot {
  readonly id: number;
  readonly directory: string;
  readonly owner: Owner | undefined;
}

/** How a kind of sandbox is started by the launcher. */
export interface LaunchPlan {
  /** Environment of the launcher and of all below it. */
  env: Readonly<Record<string, string>>;
  /** Who the launcher runs as; undefined is the host process's own user. */
  user: Owner | undefined;
  /** Who owns a slot's files and runs its processes. */
  slotOwner(slot: number): Owner | undefined;
  /**
   * Shell text that runs in the background with stdin, stdout and stderr set; it may use $slot, $base (directory name
   * below `bases`, or "none") and $workdir, and must end by becoming (`exec`) the sandbox's first process.
   */
  command: string;
  /** Shell text that kills all processes of $slot, or null where the death of the first process does that. */
  sweep: string | null;
  /** Whether each sandbox comes to lead a process group of its own that the host has to kill. */
  group: boolean;
}

const SWEEP_ALL: string =
  "for pid in $(jobs -rp); do kill -KILL -- -$pid; done; " +
  // biome-ignore lint/suspicious/noTemplateCurlyInString: this is bash's own expansion.
  'for slot in "${!used[@]}"; do sweep; done';

function launcherScript(scratch: string, plan: LaunchPlan): string {
  return [
    `cd ${quote(scratch)} || exit 1`,
    // What the host process itself was started with must not reach a sandbox.
    // biome-ignore lint/suspicious/noTemplateCurlyInString: this is bash's own expansion.
    'for path in /proc/self/fd/*; do fd=${path##*/}; ((fd > 2)) && eval "exec $fd>&-"; done',
    `launch() { ${plan.command} ; }`,
    `sweep() { ${plan.sweep ?? ":"} ; }`,
    "while IFS=' ' read -r verb slot base workdir; do",
    'case "$verb" in',
    `pipes) for ((i = slot; i < slot + ${SLOT_BATCH}; i++)); do set -- "$@" slots/$i/in slots/$i/out; done`,
    'mkfifo -m 600 "$@" && printf "pipes %s 0\\n" "$slot" || printf "failed %s 0\\n" "$slot"; set --;;',
    // The pipes are opened here, not in the child, so that they are open once the reply is out.
    "start) { exec 5<slots/$slot/in 6>slots/$slot/out; } && { launch <&5 >&6 2>slots/$slot/err 5<&- 6>&- & }",
    'exec 5<&- 6>&-; used[slot]=1; printf "start %s %s\\n" "$slot" "$!";;',
    'sweep) sweep </dev/null >/dev/null 2>&1; printf "sweep %s 0\\n" "$slot";;',
    "esac",
    "done",
    // The host process has gone: what does not die with its parent is ended here.
    ...(plan.group ? [SWEEP_ALL] : []),
  ].join("\n");
}

interface Waiting {
  resolve(value: number): void;
  reject(error: Error): void;
  timer: NodeJS.Timeout;
}

export class Launcher {
  readonly #scratch: string;
  readonly #plan: LaunchPlan;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<string, Waiting>();
  readonly #free: Slot[] = [];
  #nextSlot: number;
  #making: Promise<void> | undefined;
  #reply = "";
  #dead = false;

  /** `firstSlot`: slots below it were used by an earlier launcher of the same scratch directory. */
  constructor(scratch: string, plan: LaunchPlan, bash: string, firstSlot: number) {
    this.#scratch = scratch;
    this.#plan = plan;
    this.#nextSlot = firstSlot;
    this.#child = spawn(bash, ["--norc", "--noprofile", "-c", launcherScript(scratch, plan), "launcher"], {
      cwd: scratch,
      env: plan.env,
      stdio: ["pipe", "pipe", "ignore"],
      detached: true,
      ...(plan.user ?? {}),
    });
    this.#child.once("error", (cause) => this.#fail(cause));
    this.#child.once("exit", () => this.#fail());
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

  /** A slot whose pipes exist; its folders do not. */
  async acquire(): Promise<Slot> {
    while (this.#free.length === 0) {
      this.#making ??= this.#makeSlots().finally(() => {
        this.#making = undefined;
      });
      await this.#making;
    }
    return this.#free.pop() as Slot;
  }

  /** Gives back a slot in which no process is left. */
  release(slot: Slot): void {
    if (!this.#dead) this.#free.push(slot);
  }

  /** Starts a sandbox in `slot`; the host must hold both pipes open. Returns the host's id of its first process. */
  start(slot: Slot, base: string, workdir: string): Promise<number> {
    return this.#ask("start", slot.id, `${base} ${workdir}`);
  }

  /** Kills what `pid`, started in `slot`, is and began. */
  async kill(slot: Slot, pid: number): Promise<void> {
    this.killNow(pid);
    if (this.#plan.sweep !== null && !this.#dead) await this.#ask("sweep", slot.id, "");
  }

  /** As `kill`, as far as it goes at once. */
  killNow(pid: number): void {
    // The process itself as well: it may not have come to lead its group yet.
    for (const target of this.#plan.group ? [-pid, pid] : [pid]) {
      try {
        process.kill(target, "SIGKILL");
      } catch {
        // Gone already.
      }
    }
  }

  /** The last line that a failed start left. */
  complaint(slot: Slot): string {
    try {
      return readFileSync(`${slot.directory}/err`, "utf8").trim().split("\n").at(-1) ?? "";
    } catch {
      return "";
    }
  }

  stop(): void {
    this.#fail();
    this.#child.kill("SIGKILL");
    this.#child.stdin?.destroy();
    this.#child.stdout?.destroy();
  }

  async #makeSlots(): Promise<void> {
    const first = this.#nextSlot;
    this.#nextSlot += SLOT_BATCH;
    const made: Slot[] = [];
    for (let id = first; id < first + SLOT_BATCH; id++) {
      const directory = `${this.#scratch}/slots/${id}`;
      const owner = this.#plan.slotOwner(id);
      mkdirSync(directory, 0o700);
      // The launcher makes the pipes and opens them; with users of their own, sandboxes own only what lies below.
      const keeper = this.#plan.user ?? (owner ? { uid: 0, gid: 0 } : undefined);
      if (keeper) chownSync(directory, keeper.uid, keeper.gid);
      if (owner && owner.uid !== keeper?.uid) chmodSync(directory, 0o711);
      made.push({ id, directory, owner });
    }
    await this.#ask("pipes", first, "");
    this.#free.push(...made.reverse());
  }

  #ask(verb: string, slot: number, rest: string): Promise<number> {
    if (this.#dead) return Promise.reject(sandboxBroken("The shell that starts sandboxes has died."));
    return new Promise((resolve, reject) => {
      const key = `${verb} ${slot}`;
      const timer = setTimeout(() => {
        this.#waiting.delete(key);
        reject(
          sandboxBroken(`No answer to "${verb}" from the shell that starts sandboxes in ${REPLY_MS} ms.`),
        );
      }, REPLY_MS);
      this.#waiting.set(key, { resolve, reject, timer });
      this.#child.stdin?.write(`${key} ${rest}\n`);
    });
  }

  #read(text: string): void {
    const lines = (this.#reply + text).split("\n");
    this.#reply = lines.pop() ?? "";
    for (const line of lines) {
      const [verb, slot, value] = line.split(" ");
      const failed = verb === "failed";
      const key = `${failed ? "pipes" : verb} ${slot}`;
      const waiting = this.#waiting.get(key);
      if (!waiting) continue;
      this.#waiting.delete(key);
      clearTimeout(waiting.timer);
      if (failed) waiting.reject(sandboxBroken(`Cannot make pipes in ${this.#scratch}; is the disk full?`));
      else waiting.resolve(Number(value));
    }
  }

  #fail(cause?: Error): void {
    if (this.#dead) return;
    this.#dead = true;
    const error = sandboxBroken("The shell that starts sandboxes has died.", { cause });
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#waiting.clear();
  }
}

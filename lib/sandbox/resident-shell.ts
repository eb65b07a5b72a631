// One bash that stays and runs command after command: what a fresh process would cost is paid once.
//
// The protocol, over two pipes. Host to shell: length NUL command nonce, again and again, or NUL command NUL nonce. Shell
// to host: whatever the command prints, then NUL nonce ' ' status ' ' done|gone ' ' directory NUL. The nonce is read only
// after the command has ended, so that no command can know it, and no command shows it. A length saves the shell one
// system call a byte, which is what finding the NUL takes; it counts characters, which depend on the agent's locale, so
// that only ASCII has one.
import { closeSync, constants, openSync, readSync } from "node:fs";
import { Socket } from "node:net";
import { sandboxAborted, sandboxBroken } from "./errors.ts";
import type { Launcher, Slot, StartLimits } from "./launcher.ts";
import { FLOOD_BYTES } from "./limits.ts";
import { secret } from "./own-files.ts";

const NONCE_LENGTH = 24;

/**
 * What the resident bash runs. In one line, so that "line 1" in its messages is the command's first. While no command
 * runs its output is /dev/null and the pipes are its descriptors 3 and 4; a command gets neither.
 */
export const RESIDENT_SCRIPT: string = [
  "exec 3<&0 4>&1 </dev/null >/dev/null 2>&1; RANDOM=1;",
  "__tell() { local status=$? nonce;",
  `IFS= builtin read -r -N ${NONCE_LENGTH} -u 3 nonce && builtin printf '\\0%s %s %s %s\\0' "$nonce" "$status" "$1" "$PWD" >&4 ||`,
  // At an exit from within a function both descriptors are still put away; then the end of the output is the sign.
  'builtin printf \'\\0exit %s %s\\0\' "$status" "$PWD"; } 2>/dev/null;',
  "trap '__tell gone' EXIT; trap 'builtin exit 152' XCPU;",
  // A stray `break` or `continue` of a command ends at one of the two loops.
  "while :; do while __tell done; do IFS= builtin read -r -d '' -u 3 __command || builtin exit 0;",
  'if [[ $__command ]]; then IFS= builtin read -r -N "$__command" -u 3 __command;',
  "else IFS= builtin read -r -d '' -u 3 __command; fi || builtin exit 0;",
  'builtin eval "$__command" 3<&- >&4 2>&4 4>&- </dev/null; done; done',
].join(" ");

const START_MS = 20_000;
const KILL_MS = 10_000;
const WATCH_MS = 100;

export interface ShellResult {
  output: Buffer;
  /** Bytes that were not kept. */
  dropped: number;
  /** "done": ended by itself. "gone": the shell went with it. "timeout", "flood", "watch": killed for it. */
  end: "done" | "gone" | "timeout" | "flood" | "watch";
  /** Exit status where it is known. */
  status: number | null;
  directory: string | null;
}

export interface RunOptions {
  timeoutMs: number;
  /** Bytes of output to keep. */
  keep: number;
  signal?: AbortSignal | undefined;
  /** Asked now and then while the command runs; true kills it. */
  watch?: (() => Promise<boolean>) | undefined;
}

interface Running {
  nonce: Buffer;
  keep: number;
  chunks: Buffer[];
  kept: number;
  total: number;
  /** Bytes that may be the beginning of the end mark. */
  tail: Buffer;
  settle(result: Pick<ShellResult, "end" | "status" | "directory">): void;
  fail(error: Error): void;
}

export class ResidentShell {
  readonly #launcher: Launcher;
  readonly #slot: Slot;
  readonly #input: Socket;
  readonly #output: Socket;
  readonly #ended: Promise<void>;
  #alive = true;
  #running: Running | undefined;
  #closing: Promise<boolean> | undefined;

  /**
   * Starts the slot's sandbox and runs `prelude` in it.
   * @throws ERR_TOKENRING_SANDBOX when it does not come up; then the slot must not be used again.
   */
  static async start(
    launcher: Launcher,
    slot: Slot,
    options: {
      base: string;
      workdir: string;
      limits: StartLimits;
      prelude: string;
      signal?: AbortSignal | undefined;
    },
  ): Promise<ResidentShell> {
    let input = -1;
    let output = -1;
    try {
      // Reading and writing, since a pipe without a reader cannot be opened for writing alone.
      input = openSync(`${slot.directory}/in`, constants.O_RDWR | constants.O_NONBLOCK);
      drain(input);
      output = openSync(`${slot.directory}/out`, constants.O_RDONLY | constants.O_NONBLOCK);
      await launcher.start(slot, options.base, options.workdir, options.limits);
    } catch (error) {
      if (input >= 0) closeSync(input);
      if (output >= 0) closeSync(output);
      throw error;
    }
    const shell = new ResidentShell(launcher, slot, input, output);
    try {
      shell.#input.write("0".repeat(NONCE_LENGTH));
      // Not to be aborted: killed before it has said that it shall die with its parent, bubblewrap leaves an orphan.
      const result = await shell.run(options.prelude, { timeoutMs: START_MS, keep: 4096 });
      if (options.signal?.aborted) throw sandboxAborted(options.signal);
      if (result.end !== "done" || result.status !== 0) {
        const why = launcher.complaint(slot) || result.output.toString("utf8").replaceAll("\0", " ").trim();
        throw sandboxBroken(`A sandbox did not start (${result.end}, status ${result.status}): ${why}`);
      }
      return shell;
    } catch (error) {
      await shell.kill();
      throw error;
    }
  }

  private constructor(launcher: Launcher, slot: Slot, input: number, output: number) {
    this.#launcher = launcher;
    this.#slot = slot;
    this.#input = new Socket({ fd: input, readable: false, writable: true });
    this.#output = new Socket({ fd: output, readable: true, writable: false });
    this.#input.on("error", () => this.killNow());
    this.#output.on("error", () => this.#end());
    this.#output.on("data", (chunk: Buffer) => this.#read(chunk));
    this.#ended = new Promise((resolve) => {
      this.#output.once("close", () => {
        this.#end();
        resolve();
      });
    });
    // A sandbox that its owner forgot keeps no process alive; a running command's timer does.
    this.#input.unref();
    this.#output.unref();
    this.#output.pause();
  }

  get alive(): boolean {
    return this.#alive;
  }

  /**
   * Runs one command; the caller sees to it that there is one at a time. After any end but "done",
   * and when it throws, what is left has to be killed.
   */
  async run(command: string, options: RunOptions): Promise<ShellResult> {
    if (!this.#alive) throw sandboxBroken("A sandbox's shell died between two commands.");
    const { signal } = options;
    if (signal?.aborted) throw sandboxAborted(signal);
    const timers: NodeJS.Timeout[] = [];
    let onAbort: (() => void) | undefined;
    try {
      return await new Promise<ShellResult>((resolve, reject) => {
        const running: Running = {
          nonce: Buffer.from(`\0${secret(NONCE_LENGTH / 2)} `),
          keep: options.keep,
          chunks: [],
          kept: 0,
          total: 0,
          tail: Buffer.alloc(0),
          settle: (result) => {
            const dropped = Math.min(running.total - running.kept, FLOOD_BYTES);
            resolve({ output: Buffer.concat(running.chunks), dropped, ...result });
          },
          fail: reject,
        };
        this.#running = running;
        const stop = (end: "timeout" | "flood" | "watch"): void => {
          this.#running = undefined;
          this.#take(running, running.tail);
          running.settle({ end, status: null, directory: null });
        };
        timers.push(setTimeout(() => stop("timeout"), options.timeoutMs));
        if (options.watch) this.#watch(options.watch, timers, () => stop("watch"));
        onAbort = () => {
          this.#running = undefined;
          reject(sandboxAborted(signal as AbortSignal));
        };
        signal?.addEventListener("abort", onAbort, { once: true });
        const nonce = running.nonce.toString("latin1", 1, 1 + NONCE_LENGTH);
        this.#input.write(
          isAscii(command) ? `${command.length}\0${command}${nonce}` : `\0${command}\0${nonce}`,
        );
        this.#output.resume();
      });
    } finally {
      for (const timer of timers) clearTimeout(timer);
      if (onAbort) signal?.removeEventListener("abort", onAbort);
      if (this.#running === undefined) this.#output.pause();
    }
  }

  /** Looks again after a pause that grows with what looking costs. */
  #watch(watch: () => Promise<boolean>, timers: NodeJS.Timeout[], stop: () => void): void {
    const running = this.#running;
    const look = async (): Promise<void> => {
      const begin = performance.now();
      const over = await watch().catch(() => false);
      if (this.#running !== running) return;
      if (over) stop();
      else later(Math.max(WATCH_MS, 20 * (performance.now() - begin)));
    };
    const later = (ms: number): void => {
      timers.push(setTimeout(() => void look(), ms));
    };
    later(WATCH_MS);
  }

  /** Kills all that runs inside. Resolves to whether it is sure that nothing is left, so that the slot is free. */
  kill(): Promise<boolean> {
    if (this.#closing) return this.#closing;
    this.#closing = this.#kill();
    return this.#closing;
  }

  async #kill(): Promise<boolean> {
    const killed = this.#launcher.kill(this.#slot).then(
      () => true,
      () => false,
    );
    this.#output.resume();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<boolean>((resolve) => {
      timer = setTimeout(resolve, KILL_MS, false);
    });
    const over = await Promise.race([Promise.all([killed, this.#ended]).then(([sure]) => sure), late]);
    clearTimeout(timer);
    this.#end();
    this.#input.destroy();
    this.#output.destroy();
    return over;
  }

  /** As `kill`, as far as it goes at once. */
  killNow(): void {
    if (!this.#closing) this.#launcher.killNow(this.#slot);
  }

  #end(): void {
    if (!this.#alive) return;
    this.#alive = false;
    const running = this.#running;
    this.#running = undefined;
    if (!running) return;
    // The shell may have said how it ended; see RESIDENT_SCRIPT.
    const text = running.tail.toString("latin1");
    const mark = /\0exit (\d+) ([^\0]*)\0$/.exec(text);
    this.#take(running, mark ? running.tail.subarray(0, mark.index) : running.tail);
    running.settle({
      end: "gone",
      status: mark ? Number(mark[1]) : null,
      directory: mark ? Buffer.from(mark[2] ?? "", "latin1").toString("utf8") : null,
    });
  }

  #read(chunk: Buffer): void {
    const running = this.#running;
    if (!running) return;
    const data = running.tail.length === 0 ? chunk : Buffer.concat([running.tail, chunk]);
    const start = data.indexOf(running.nonce);
    const end = start < 0 ? -1 : data.indexOf(0, start + running.nonce.length);
    if (end >= 0) {
      this.#take(running, data.subarray(0, start));
      const mark = data.toString("utf8", start + running.nonce.length, end);
      const [, status, state, directory] = /^(\d+) (done|gone) (.*)$/s.exec(mark) ?? [];
      this.#running = undefined;
      const gone = state !== "done";
      if (gone) this.#alive = false;
      running.settle({ end: gone ? "gone" : "done", status: Number(status), directory: directory ?? null });
      return;
    }
    // Held back: from the last NUL on it may be a mark that is not all here; a directory's name is at most 4 KiB long.
    const nul = start >= 0 ? start : data.lastIndexOf(0);
    const exit = start >= 0 ? -1 : data.lastIndexOf(0, Math.max(0, nul - 1));
    let from =
      nul < 0 ? data.length : exit >= 0 && data.toString("latin1", exit, exit + 6) === "\0exit " ? exit : nul;
    if (data.length - from > 8192) from = data.length;
    this.#take(running, data.subarray(0, from));
    running.tail = data.subarray(from);
    if (running.total > running.keep + FLOOD_BYTES) {
      this.#running = undefined;
      running.settle({ end: "flood", status: null, directory: null });
    }
  }

  #take(running: Running, data: Buffer): void {
    running.total += data.length;
    const room = running.keep - running.kept;
    if (room <= 0 || data.length === 0) return;
    const part = data.subarray(0, room);
    running.chunks.push(part);
    running.kept += part.length;
  }
}

/** Of characters that are one byte in every locale; the empty text has no length to send. */
function isAscii(text: string): boolean {
  return text !== "" && Buffer.byteLength(text) === text.length;
}

/** Empties a pipe of what the slot's last shell did not live to read. */
function drain(pipe: number): void {
  const buffer = Buffer.allocUnsafe(65_536);
  try {
    while (readSync(pipe, buffer) > 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
  }
}

// Workers on this machine, as child processes: `tokenring worker`, started for a workstation.
import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** The command, from lib/ranks and from dist/ranks alike. */
const COMMAND = fileURLToPath(new URL("../../dist/cli/main.js", import.meta.url));
const LAST_WORDS = 2000;

export class LocalWorker {
  readonly rank: number;
  /** How the process ended, in words; with its last words on stderr, if there were any. */
  readonly ended: Promise<string>;
  readonly #child: ChildProcess;

  constructor(place: { rank: number; size: number; port: number; secret: string }) {
    this.rank = place.rank;
    // The leader listens already: one that does not is gone.
    const child = spawn(process.execPath, [COMMAND, "worker", "--wait", "0"], {
      // A group of its own: Ctrl-C is the leader's to hear, which then ends its workers in order.
      detached: true,
      stdio: ["ignore", "ignore", "pipe"],
      env: {
        ...process.env,
        RANK: `${place.rank}`,
        WORLD_SIZE: `${place.size}`,
        LOCAL_RANK: `${place.rank}`,
        MASTER_ADDR: "127.0.0.1",
        TOKENRING_PORT: `${place.port}`,
        TOKENRING_SECRET: place.secret,
      },
    });
    this.#child = child;
    let words = "";
    child.stderr?.setEncoding("utf8");
    child.stderr?.on("data", (text: string) => {
      words = (words + text).slice(-LAST_WORDS);
    });
    this.ended = new Promise((resolve) => {
      child.once("error", (error) => resolve(`its process could not be started (${error.message})`));
      child.once("close", (code, signal) => {
        const how = signal === null ? `ended with exit code ${code}` : `was ended by ${signal}`;
        const last = words.trim().replaceAll(/\s*\n\s*/g, "; ");
        resolve(`its process ${how}${last === "" ? "" : `: ${last}`}`);
      });
    });
    this.hold(false);
  }

  /** Whether the child keeps this process running. */
  hold(held: boolean): void {
    const pipe = this.#child.stderr as unknown as { ref(): void; unref(): void } | null;
    if (held) {
      this.#child.ref();
      pipe?.ref();
    } else {
      this.#child.unref();
      pipe?.unref();
    }
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
}

// PyTorch as a peer: a Python process that is told once what to do, and then does it once a line.
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { fileURLToPath } from "node:url";

const SCRIPT = fileURLToPath(new URL("torch_peer.py", import.meta.url));
const START_MS = 120_000;
const CALL_MS = 120_000;

export interface TorchPeer {
  /** Name with versions, as results show it. */
  readonly name: string;
  /** Does the work once. */
  call(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Starts PyTorch on `request` (see torch_peer.py). The interpreter is TOKENRING_PYTHON or python3.
 * @returns null where it has no PyTorch and transformers; other faults are thrown with what Python said.
 */
export async function openTorch(request: object): Promise<TorchPeer | null> {
  const python = process.env.TOKENRING_PYTHON ?? "python3";
  const child = spawn(python, [SCRIPT], {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, HF_HUB_OFFLINE: "1", TRANSFORMERS_VERBOSITY: "error" },
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-4000);
  });
  child.stdin.on("error", () => undefined);
  const started = await once(child, "spawn").then(
    () => true,
    () => false,
  );
  if (!started) return null;
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async (line: string, ms: number): Promise<string> => {
    child.stdin.write(`${line}\n`);
    const timer = setTimeout(() => child.kill("SIGKILL"), ms);
    try {
      const { value, done } = await lines.next();
      if (!done) return value as string;
      throw new Error(`${python} ended before it answered, or took over ${ms / 1000} s:\n${complaint}`);
    } finally {
      clearTimeout(timer);
    }
  };
  const name = await answer(JSON.stringify(request), START_MS);
  if (name === "missing") {
    await end(child);
    return null;
  }
  return {
    name,
    async call() {
      await answer("go", CALL_MS);
    },
    close: () => end(child),
  };
}

async function end(child: ChildProcessByStdio<Writable, Readable, Readable>): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.stdin.end();
  const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await exited;
  clearTimeout(timer);
}

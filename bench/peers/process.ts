// A peer in a process of its own: it is told once what to do, and then does it once a line.
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { TokenringError } from "tokenring";
import type { Peer } from "../measure.ts";

// Compiling a model takes a minute on a small machine.
const ANSWER_MS = 300_000;

export interface PeerProcess extends Peer {
  close(): Promise<void>;
}

/**
 * Starts a peer. It reads one JSON request from stdin and answers with the JSON line `{"name": …}`, or with
 * `{"missing": …}` where the machine lacks what it needs; then it answers each line "go" with the JSON value of one
 * call (null, or a number where the call measures something).
 * @returns null where the program or what it needs is missing; the reason goes to `onMissing`
 * @throws ERR_TOKENRING_INTERNAL with what it wrote to stderr, if it ends or answers nothing for five minutes
 */
export async function openPeerProcess(
  program: string,
  args: readonly string[],
  request: object,
  environment: Readonly<Record<string, string>> = {},
  onMissing: (reason: string) => void = () => undefined,
): Promise<PeerProcess | null> {
  const child = spawn(program, args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...environment },
  });
  let complaint = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    complaint = (complaint + text).slice(-4000);
  });
  child.stdin.on("error", () => undefined);
  try {
    await once(child, "spawn");
  } catch (error) {
    onMissing((error as Error).message);
    return null;
  }
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const ask = async (line: string): Promise<unknown> => {
    child.stdin.write(`${line}\n`);
    const timer = setTimeout(() => child.kill("SIGKILL"), ANSWER_MS);
    try {
      const { value, done } = await lines.next();
      if (!done) return JSON.parse(value as string);
    } finally {
      clearTimeout(timer);
    }
    const why = `${program} ended before it answered, or took over ${ANSWER_MS / 1000} s`;
    throw new TokenringError("ERR_TOKENRING_INTERNAL", `${why}: ${complaint.trim() || "it said nothing"}`);
  };
  let answer: { name?: string; missing?: string };
  try {
    answer = (await ask(JSON.stringify(request))) as typeof answer;
  } catch (error) {
    await end(child);
    throw error;
  }
  if (answer.name === undefined) {
    onMissing(answer.missing ?? "it gave no name");
    await end(child);
    return null;
  }
  return { name: answer.name, call: () => ask("go"), close: () => end(child) };
}

async function end(child: ChildProcessByStdio<Writable, Readable, Readable>): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.stdin.end();
  const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
  await exited;
  clearTimeout(timer);
}

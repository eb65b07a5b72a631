// `tokenring` on many ranks as processes: started by itself, and as a launcher starts it, on every rank.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, describe, expect, test, vi } from "vitest";

const main = path.resolve("dist/cli/main.js");
const root = mkdtempSync(path.join(tmpdir(), "tokenring-ranks-command-"));
afterAll(() => rmSync(root, { recursive: true }));

/** `silence`: seconds; few only where a rank is silent, for a busy machine can keep one that is well from being heard. */
function job(steps: number, silence = 60): string {
  const file = path.join(root, `job-${steps}-${silence}.yaml`);
  const text = `
seed: 3
silenceSeconds: ${silence}
checkpointSeconds: 0.5
model: { create: { hiddenSize: 32, layers: 1, heads: 1, keyValueHeads: 1, headDim: 32, intermediateSize: 64, maxPositions: 512 } }
tasks: { name: tinyswe, train: 1, heldOut: 2 }
warmStart:
  copySteps: 1
  copyBatch: { sequences: 4, tokens: 48 }
  steps: ${steps}
  tokensPerStep: 300
  expertShare: 0.5
  personas: { expert: 0.5, sloppy: 0.5, confused: 0 }
  learningRate: 0.001
evaluate: { runs: 1, limits: { maxTurns: 2, maxContext: 320 } }
`;
  writeFileSync(file, text);
  return file;
}

interface Process {
  child: ChildProcess;
  said: () => string;
  /** Exit code, or the signal that ended it. */
  ended: Promise<number | string>;
}

/** What puts a process into a container of its own, as far as process numbers go. */
const CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
const canContain = spawnSync(CONTAINER[0] as string, [...CONTAINER.slice(1), "true"]).status === 0;

/** `within`: a command that starts the command. */
function start(args: string[], env: Record<string, string> = {}, within: string[] = []): Process {
  const [program, ...rest] = [...within, process.execPath, main, ...args] as [string, ...string[]];
  const child = spawn(program, rest, {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, ...env },
    timeout: 580_000,
    killSignal: "SIGKILL",
  });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const ended = once(child, "close").then(([code, signal]) => (signal ?? code) as number | string);
  return { child, said: () => said, ended };
}

/**
 * A port that nobody listens at. Below those that the system gives out by itself (from 32768 on Linux), or it would
 * be given to another test's connection before rank 0 listens.
 */
async function freePort(): Promise<string> {
  for (;;) {
    const port = 10_000 + Math.floor(20_000 * Math.random());
    const server = createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").then(
      () => true,
      () => false,
    );
    if (!isFree) continue;
    server.close();
    await once(server, "close");
    return `${port}`;
  }
}

/** The same command on every rank, as torchrun --no-python starts it; `within` by rank. */
async function launch(size: number, args: string[], within: string[][] = []): Promise<Process[]> {
  const port = await freePort();
  return Array.from({ length: size }, (_, rank) =>
    start(args, variables(rank, size, port), within[rank] ?? []),
  );
}

const variables = (rank: number, size: number, port: string): Record<string, string> => ({
  RANK: `${rank}`,
  WORLD_SIZE: `${size}`,
  LOCAL_RANK: `${rank}`,
  LOCAL_WORLD_SIZE: `${size}`,
  MASTER_ADDR: "127.0.0.1",
  MASTER_PORT: port,
  TOKENRING_SECRET: "a secret of the tests",
});

/** Waits until the run has taken a step. */
async function learns(run: string): Promise<void> {
  const metrics = path.join(run, "metrics.jsonl");
  const begun = () => existsSync(metrics) && readFileSync(metrics, "utf8").includes('"type":"step"');
  await vi.waitUntil(begun, { timeout: 400_000 });
}

/** Processes whose parent was `pid`, as they are now. */
function children(pid: number): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((name) => {
      try {
        return new RegExp(`^PPid:\\s+${pid}$`, "m").test(readFileSync(`/proc/${name}/status`, "utf8"));
      } catch {
        return false;
      }
    })
    .map(Number);
}

function gone(pid: number): boolean {
  try {
    return /^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return true;
  }
}

describe("tokenring on many ranks", { timeout: 600_000 }, () => {
  test("starts workers by itself, which end with it, also when it is killed", async () => {
    const run = path.join(root, "local");
    const leader = start(["train", job(100_000), "--out", run, "--ranks", "3"]);
    await learns(run);
    const workers = children(leader.child.pid as number).filter((pid) =>
      readFileSync(`/proc/${pid}/cmdline`, "utf8").includes("\0worker\0"),
    );
    expect(workers).toHaveLength(2);
    leader.child.kill("SIGKILL");
    expect(await leader.ended).toBe("SIGKILL");
    await vi.waitUntil(() => workers.every(gone), { timeout: 60_000 });
  });

  test("is stopped by SIGTERM in order: its steps are saved, and it goes on on another number of ranks", async () => {
    const run = path.join(root, "stopped");
    const leader = start(["train", job(60), "--out", run, "--ranks", "2"]);
    await learns(run);
    leader.child.kill("SIGTERM");
    expect(await leader.ended, leader.said()).toBe(143);
    expect(leader.said()).toContain(`to go on: tokenring resume ${run}`);
    const resumed = start(["resume", run, "--ranks", "3"]);
    expect(await resumed.ended, resumed.said()).toBe(0);
    expect(existsSync(path.join(run, "report.html"))).toBe(true);
  });

  test("started on every rank by a launcher is one run, whose other ranks are its workers", async () => {
    const run = path.join(root, "launched");
    const ranks = await launch(3, ["train", job(3), "--out", run]);
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    expect(codes, ranks.map(({ said }) => said()).join("\n")).toEqual([0, 0, 0]);
    expect(ranks.map(({ said }) => said()).slice(1)).toEqual(["", ""]);
    expect(existsSync(path.join(run, "report.html"))).toBe(true);
  });

  test("started beside a torchrun that has MASTER_PORT for itself takes the port after it", async () => {
    const run = path.join(root, "agent");
    const port = await freePort();
    // The agent's store: whoever speaks to it in place of rank 0 hears nothing.
    const store = createServer().listen(Number(port), "127.0.0.1");
    await once(store, "listening");
    const ranks = [0, 1].map((rank) =>
      start(["train", job(3), "--out", run], {
        ...variables(rank, 2, port),
        TORCHELASTIC_USE_AGENT_STORE: "True",
      }),
    );
    const codes = await Promise.all(ranks.map(({ ended }) => ended));
    store.close();
    expect(codes, ranks.map(({ said }) => said()).join("\n")).toEqual([0, 0]);
  });

  test.runIf(canContain)(
    "on the CPU of two hosts, or two containers of one, is refused with what to do instead",
    async () => {
      const run = path.join(root, "apart");
      const ranks = await launch(2, ["train", job(3), "--out", run], [[], CONTAINER]);
      const [leader, worker] = ranks as [Process, Process];
      expect(await leader.ended, leader.said()).toBe(1);
      expect(leader.said()).toMatch(
        new RegExp(
          `create \\(command #1\\): rank 1 \\(process \\d+ on .*\\).*: process ${leader.child.pid}, which made the ` +
            "unique id, runs on another host or in another container; ranks on the CPU meet in the memory of one: " +
            'start all of them there, or give each a GPU \\(device "cuda"\\)',
        ),
      );
      expect(await worker.ended).toBe(1);
    },
  );

  test("whose rank 0 is killed leaves no rank behind, and each says what it was in", async () => {
    const run = path.join(root, "headless");
    const [leader, ...workers] = (await launch(3, ["train", job(100_000), "--out", run])) as [
      Process,
      Process,
      Process,
    ];
    await learns(run);
    leader.child.kill("SIGKILL");
    // Well before what would end them in any case.
    const soon = Promise.all(workers.map(({ ended }) => ended));
    const codes = await Promise.race([soon, delay(60_000, null, { ref: false })]);
    expect(codes).toEqual([expect.anything(), expect.anything()]);
    for (const code of codes ?? []) expect([1, "SIGKILL"]).toContain(code);
    for (const [i, worker] of workers.entries())
      expect(worker.said()).toMatch(
        new RegExp(`tokenring: rank ${i + 1} of 3.*: the leader is lost: its connection`),
      );
  });

  test.each(["SIGKILL", "SIGSTOP"] as const)(
    "of which a rank gets %s ends on every rank with its name, and resumes",
    async (signal) => {
      const run = path.join(root, signal);
      const ranks = await launch(3, ["train", job(200, 10), "--out", run]);
      const [leader, first, second] = ranks as [Process, Process, Process];
      await learns(run);
      second.child.kill(signal);
      expect(await leader.ended, leader.said()).toBe(1);
      expect([1, "SIGKILL"]).toContain(await first.ended);
      const why = signal === "SIGKILL" ? "its connection (was closed|broke .*)" : "it was silent for 10 s";
      const lost = `rank 2 \\(process ${second.child.pid} on .*\\) of 3 is lost: ${why}`;
      expect(leader.said()).toMatch(new RegExp(`tokenring: .*\\w+ \\(command #\\d+\\): ${lost}`));
      expect(leader.said()).toContain(`to go on: tokenring resume ${run}`);
      expect(first.said()).toMatch(new RegExp(`tokenring: rank 1 of 3.*: ${lost}`));
      second.child.kill("SIGKILL");
      await second.ended;
      const again = await launch(3, ["resume", run]);
      const codes = await Promise.all(again.map(({ ended }) => ended));
      expect(codes, again.map(({ said }) => said()).join("\n")).toEqual([0, 0, 0]);
    },
  );

  test("of which a worker's launcher stops one saves its steps, and all end", async () => {
    const run = path.join(root, "preempted");
    const ranks = await launch(2, ["train", job(100_000), "--out", run]);
    const [leader, worker] = ranks as [Process, Process];
    await learns(run);
    worker.child.kill("SIGTERM");
    expect(await leader.ended).toBe(1);
    expect(leader.said()).toMatch(/rank 1 \(process \d+ on .*\): stopped by SIGTERM/);
    expect(leader.said()).toContain(`to go on: tokenring resume ${run}`);
    expect(await worker.ended).toBe(0);
    const state = JSON.parse(readFileSync(path.join(run, "state.json"), "utf8"));
    const steps = readFileSync(path.join(run, "metrics.jsonl"), "utf8").match(/"type":"step"/g)?.length;
    expect(state.progress.current.cursor.next.step).toBe(steps);
  });

  test("refuses a worker without a launcher's variables, and a number of ranks that was not launched", async () => {
    const alone = start(["worker"]);
    expect(await alone.ended).toBe(1);
    expect(alone.said()).toMatch(/^tokenring: the environment variable WORLD_SIZE is not set/);
    const run = path.join(root, "refused");
    const [leader, worker] = (await launch(2, ["train", job(3), "--out", run, "--ranks", "4"])) as [
      Process,
      Process,
    ];
    expect(await leader.ended).toBe(1);
    expect(leader.said()).toContain("ranks: 4, but the launcher started 2 (WORLD_SIZE)");
    worker.child.kill("SIGKILL");
    await worker.ended;
  });
});

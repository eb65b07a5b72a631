// How processes and threads that hold a policy end: without disposing, in the middle of a call, by a signal.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

const script = fileURLToPath(new URL("./fixtures/process.ts", import.meta.url));

interface Ending {
  code: number | null;
  signal: NodeJS.Signals | null;
  lines: string[];
  errors: string;
}

/** Runs the fixture until it ends; `onLine` hears its lines of output. */
async function run(ending: string, onLine?: (child: ChildProcess) => void): Promise<Ending> {
  const child = spawn(process.execPath, ["--expose-gc", "--import", "tsx", script, ending], {
    stdio: ["ignore", "pipe", "pipe"],
    timeout: 50_000,
    killSignal: "SIGKILL",
  });
  const lines: string[] = [];
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
  });
  createInterface({ input: child.stdout }).on("line", (line) => {
    lines.push(line);
    onLine?.(child);
  });
  const [code, signal] = await once(child, "close");
  return { code, signal, lines, errors };
}

const clean = { code: 0, signal: null, errors: "" };

describe("a process with a policy", () => {
  it("ends by itself when nothing is awaited, undisposed", async () => {
    expect(await run("undisposed")).toEqual({ ...clean, lines: ["sampled 20"] });
  });

  it("gives back what was never disposed when it is collected", async () => {
    expect(await run("collected")).toEqual({ ...clean, lines: ["more threads: true; left over: 0"] });
  });

  it("exits with its own code while calls run", async () => {
    expect(await run("exit")).toEqual({ ...clean, code: 7, lines: ["leaving"] });
  });

  it("dies of an uncaught error while a call runs", async () => {
    const ending = await run("throws");
    expect(ending).toMatchObject({ code: 1, signal: null });
    expect(ending.errors).toMatch(/Error: thrown while a call runs/);
  });

  it("dies of SIGTERM in the middle of a call", async () => {
    const ending = await run("sigterm", (child) => child.kill("SIGTERM"));
    expect(ending).toEqual({ code: null, signal: "SIGTERM", lines: ["running"], errors: "" });
  });

  it("can stop its calls at SIGTERM and end well", async () => {
    let sent = false;
    const ending = await run("handled", (child) => {
      if (!sent) child.kill("SIGTERM");
      sent = true;
    });
    expect(ending).toEqual({ ...clean, lines: ["running", "ended by SIGTERM"] });
  });

  it("loads the addon in several threads, which end or are terminated without disposing", async () => {
    const ending = await run("workers");
    expect(ending).toMatchObject(clean);
    expect(ending.lines).toHaveLength(2);
    expect(ending.lines[0]).toMatch(/^(\d+,){19}\d+ 0$/); // all four sampled the same tokens and exited with 0
    expect(ending.lines[1]).toBe("and then 20");
  });
});

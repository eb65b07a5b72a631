// A command that does not end, or takes all there is, costs one observation and never the sandbox.
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { DEFAULT_LIMITS, FLOOD_BYTES, resolveLimits } from "../../lib/sandbox/limits.ts";
import type { LocalKind } from "../../lib/sandbox/local.ts";
import type { Sandbox, SandboxBackend } from "../../lib/sandbox/types.ts";
import { APART, KINDS, makeRepository, openBackend, processesWith, removeDirectories } from "./support.ts";

const MiB = 1024 * 1024;

describe.each(KINDS)("the limits of a %s sandbox", (kind: LocalKind) => {
  let backend: SandboxBackend;
  let sandbox: Sandbox;
  let repository: string;
  const alive = async (): Promise<void> => {
    expect(await sandbox.exec("echo alive")).toMatchObject({ output: "alive\n", exitCode: 0, cwd: "/repo" });
  };

  beforeAll(async () => {
    repository = makeRepository({ "a.txt": "a\n" });
    backend = await openBackend(kind);
    sandbox = await backend.open({
      repository,
      limits: { cpuSeconds: 1, outputBytes: 1000, fileBytes: 2 * MiB },
    });
  });

  afterAll(async () => {
    await backend?.dispose();
    removeDirectories();
  });

  it("kills what hangs with all it began, and keeps the tree", async () => {
    const mark = `7${process.pid}.${kind.length}`;
    const result = await sandbox.exec(`echo kept >kept; sleep ${mark} & sleep ${mark}`, { timeoutMs: 300 });
    expect(result).toEqual({ output: "", exitCode: null, timedOut: true, droppedBytes: 0, cwd: "/repo" });
    expect((await sandbox.exec("cat kept; rm kept")).output).toBe("kept\n");
    expect(processesWith(mark)).toEqual([]);
  });

  it("gives what was printed before the deadline", async () => {
    expect((await sandbox.exec("echo before; sleep 60", { timeoutMs: 500 })).output).toBe("before\n");
    await alive();
  });

  it("ends busy loops by CPU time, in a program and in the shell", async () => {
    expect(await sandbox.exec("python -c 'while True: pass'")).toMatchObject({
      exitCode: null,
      timedOut: true,
    });
    const loop = await sandbox.exec("while :; do :; done");
    expect(loop.exitCode).not.toBe(0);
    await alive();
  });

  it("cuts a flood and says how much is missing", async () => {
    const flood = await sandbox.exec("yes");
    expect(flood).toMatchObject({ exitCode: null, timedOut: false, droppedBytes: FLOOD_BYTES });
    expect(flood.output).toBe("y\n".repeat(500));
    const long = await sandbox.exec("head -c 5000 /dev/zero | tr '\\0' x; echo é");
    expect(long).toMatchObject({ output: "x".repeat(1000), exitCode: 0, droppedBytes: 4003 });
    expect((await sandbox.exec("printf 'x%.0s' {1..999}; echo é")).output).toBe("x".repeat(999));
  });

  it("is not drowned by a flood in the background", async () => {
    await sandbox.exec("yes & echo begun");
    await sandbox.exec("echo on", { timeoutMs: 5_000 });
    await sandbox.exec("kill %% 2>/dev/null || kill $!; exit", { timeoutMs: 5_000 });
    await alive();
  });

  it("bounds files, the tree and memory", async () => {
    expect((await sandbox.exec("head -c 4M /dev/zero >big; stat -c %s big; rm big")).output).toContain(
      `${2 * MiB}\n`,
    );
    const fill = await sandbox.exec("i=0; while head -c 2M /dev/zero >fill$i; do i=$((i+1)); done");
    // A disk of its own is full; else we look, and end the command.
    if (APART.includes(kind)) expect(fill.output).toContain("No space left on device");
    else
      expect(fill).toMatchObject({ exitCode: null, output: expect.stringContaining("Disk quota exceeded") });
    await sandbox.exec("rm -f fill*");
    expect((await sandbox.exec("python -c 'bytearray(8 << 30)'")).output).toContain("MemoryError");
    await alive();
  });

  // Without root or namespaces the kernel's count is that of the user, who runs more than the sandbox.
  if (APART.includes(kind) || process.getuid?.() === 0) {
    it("ends a fork bomb", async () => {
      await sandbox.exec(":(){ :|:& };: ; sleep 60", { timeoutMs: 500 });
      await alive();
    });

    it("bounds the number of processes", async () => {
      const forks =
        "import os,time\nn=0\nwhile True:\n try: p=os.fork()\n except OSError: break\n if p==0: time.sleep(60)\n n+=1\nprint(n)";
      // Another sandbox: the kernel may not be through with the dead of the last one.
      const other = await backend.open({ repository });
      await other.write("forks.py", forks);
      const count = Number((await other.exec("python forks.py", { timeoutMs: 20_000 })).output);
      expect(count).toBeGreaterThan(10);
      expect(count).toBeLessThan(DEFAULT_LIMITS.processes);
      await other.exec("exit");
      expect((await other.exec("echo alive")).output).toBe("alive\n");
      await other.close();
    });
  }
});

describe("limits", () => {
  it("have defaults, take what is given and refuse what makes no sense", () => {
    expect(resolveLimits(undefined, { processes: 9 })).toEqual({ ...DEFAULT_LIMITS, processes: 9 });
    expect(() => resolveLimits({ cpuSeconds: 0.5 })).toThrow(/cpuSeconds.*whole number, got 0.5/);
    expect(() => resolveLimits({ cpu: 1 } as object)).toThrow(/Unknown sandbox limit "cpu"/);
  });
});
